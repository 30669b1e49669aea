"""Hashes that name the content of full KV blocks.

The keys and values in a block depend on all that comes before its end: so does its hash, which covers the request's
salt and adapter, all tokens up to the block's end, and the media that begin there. It is one running SHA-256 whose
digest is read at every block boundary; requests that differ in salt or adapter never share a block.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

# No token has this id: what follows is the content of the media item that begins in the block before.
_MEDIA_MARK = b"\xff\xff\xff\xff"


class MediaItem(NamedTuple):
    """Tokens [offset, offset + length) stand for an image or the like."""

    offset: int
    length: int
    content_hash: bytes


class PrefixHashes:
    """The chain of one token sequence, extended as tokens come."""

    def __init__(
        self, block_size: int, *, salt: bytes = b"", adapter: str = "", media: Sequence[MediaItem] = ()
    ) -> None:
        """media: ascending, without overlap"""
        self.chain: list[bytes] = []
        """[num_hashed_blocks]; chain[i] names block i and everything before it."""
        self._block_size = block_size
        self._media = list(reversed(media))
        name = adapter.encode()
        self._sha = hashlib.sha256(b"pagoda kv blocks %d %d " % (len(salt), len(name)) + salt + name)
        self.root = self._sha.digest()
        """Names the empty sequence: the parent of the first block."""

    @property
    def last(self) -> bytes:
        """Names the blocks so far."""
        return self.chain[-1] if self.chain else self.root

    def extend(self, token_ids: array[int]) -> None:
        """Adds the full blocks of `token_ids`, the whole sequence so far, that the chain lacks."""
        chain, block_size = self.chain, self._block_size
        first = len(chain) * block_size
        last = len(token_ids) // block_size * block_size
        if first >= last:
            return
        data = token_ids[first:last].tobytes()
        update, digest, size = self._sha.update, self._sha.digest, 4 * block_size
        for start in range(0, len(data), size):
            update(data[start : start + size])
            if self._media:
                self._add_media((len(chain) + 1) * block_size)
            chain.append(digest())

    def _add_media(self, end: int) -> None:
        while self._media and self._media[-1].offset < end:
            item = self._media.pop()
            place = item.offset.to_bytes(8, "little") + item.length.to_bytes(8, "little")
            self._sha.update(_MEDIA_MARK + place + len(item.content_hash).to_bytes(8, "little") + item.content_hash)


NO_HASHES = PrefixHashes(1)
"""Of a request for which prefixes are not looked up."""
