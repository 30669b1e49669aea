"""Hashes that name the content of a full KV block: its tokens and everything before them.

The keys and values in a block depend on all tokens up to its end, so a block's hash covers its parent's hash and its
own tokens. The chain starts at the salt: requests with different salts never share a block.
"""

from __future__ import annotations

import hashlib
from array import array

DIGEST_BYTES = 32


def extend_chain(chain: list[bytes], salt: bytes, token_ids: array[int], block_size: int) -> None:
    """Appends to `chain` the hashes of the full blocks of `token_ids` that it lacks.

    chain: [num_hashed_blocks] hashes of the first blocks; chain[i] covers tokens [0, (i + 1) * block_size)
    """
    parent = chain[-1] if chain else hashlib.blake2b(salt, digest_size=DIGEST_BYTES, person=b"cache-salt").digest()
    for start in range(len(chain) * block_size, len(token_ids) - block_size + 1, block_size):
        tokens = token_ids[start : start + block_size].tobytes()
        parent = hashlib.blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()
        chain.append(parent)
