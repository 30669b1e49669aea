"""The rows of one executor as parallel arrays: row i is row i of the executor's batch.

A step in which no request comes, goes or needs a block is a fixed number of operations on whole arrays. What happens to
single rows is in `Lane` and `Draft`.

For a row that a request has:

    tokens [0, num_tokens)      are known here
    tokens [0, num_known)       will be known when the steps in flight are done
    tokens [0, num_computed)    have, or with the steps in flight will have, their keys and values in the blocks
    num_computed <= num_known <= limit, num_computed <= num_slots
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pagoda.scheduler.core.request import Request

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int32]
Indices: TypeAlias = NDArray[np.intp]
TokenIds: TypeAlias = NDArray[np.uint32]

# New tokens are gathered in a window per row, and go to their request when it is full. A power of two.
WINDOW = 128
# The windows of different rows are full in different steps, however alike the requests are. Odd.
_SHIFT = 37


class Rows:
    """Arrays of max_num_seqs entries each; those of a free row mean nothing, except `live` and `decoding`."""

    def __init__(self, max_num_seqs: int, block_size: int) -> None:
        def counts() -> Counts:
            return np.zeros(max_num_seqs, np.int32)

        self.live: Bools = np.zeros(max_num_seqs, np.bool_)
        """A request has the row and goes on."""
        self.decoding: Bools = np.zeros(max_num_seqs, np.bool_)
        """Exactly one token is left to compute: the row runs in every step."""
        self.num_tokens = counts()
        self.num_known = counts()
        self.num_computed = counts()
        self.num_slots = counts()
        """Tokens that the row's blocks have room for."""
        self.limit = counts()
        """Most tokens the request may have."""
        self.key_numbers: NDArray[np.uint64] = np.zeros(max_num_seqs, np.uint64)
        self.origins = counts()
        self.client_slots: Indices = np.zeros(max_num_seqs, np.intp)

        self.requests: list[Request | None] = [None] * max_num_seqs
        self.block_ids: list[list[int]] = [[] for _ in range(max_num_seqs)]
        self.num_remembered_blocks = [0] * max_num_seqs
        """The first blocks of the table, which can be found or have an equal that can."""
        self.num_expected_blocks = [0] * max_num_seqs
        """[num_remembered_blocks, num_expected_blocks): announced as being computed."""

        self._block_size = block_size
        self._window: TokenIds = np.zeros(max_num_seqs * WINDOW, np.uint32)
        self._window_starts: Indices = np.arange(max_num_seqs, dtype=np.intp) * WINDOW
        self._shifts: Counts = (np.arange(max_num_seqs) * _SHIFT % WINDOW).astype(np.int32)

    def start(self, row: int, request: Request, block_ids: list[int], num_computed: int) -> None:
        """`request` takes a free row."""
        num_tokens = len(request.token_ids)
        self.live[row] = True
        self.num_tokens[row] = self.num_known[row] = num_tokens
        self.num_computed[row] = num_computed
        self.num_slots[row] = len(block_ids) * self._block_size
        self.limit[row] = request.max_num_tokens
        self.key_numbers[row] = request.key.number
        self.requests[row] = request
        self.block_ids[row] = block_ids

    def append(self, rows: Indices, token_ids: TokenIds) -> tuple[Counts, Bools, Bools]:
        """New tokens of `rows`, parallel. Returns how many tokens each row has now, whether it may have no more, and
        whether it must be flushed before its next token."""
        # Rows in use are mostly the first ones: slices are several times faster than lists of indices.
        which = slice(0, len(rows)) if rows[-1] == len(rows) - 1 else rows
        num_tokens = self.num_tokens[which]
        places = (num_tokens + self._shifts[which]) & (WINDOW - 1)
        self._window[self._window_starts[which] + places] = token_ids
        num_tokens = num_tokens + 1
        self.num_tokens[which] = num_tokens
        return num_tokens, num_tokens >= self.limit[which], places == WINDOW - 1

    def flush(self, row: int) -> None:
        """The request gets the tokens that it lacks."""
        request = self.requests[row]
        assert request is not None
        first, last = len(request.token_ids), int(self.num_tokens[row])
        if first < last:
            # The window is flushed whenever it is full, so that what is missing is in one piece.
            start = row * WINDOW + (first + int(self._shifts[row])) % WINDOW
            request.token_ids.frombytes(self._window[start : start + last - first].tobytes())
