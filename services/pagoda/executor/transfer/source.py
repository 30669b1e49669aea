"""A sender's memory, as its receiver reads it.

Nothing but its receiver ever writes to a cache, and only for a lease that is valid, so a sender that was stopped and
goes on much later can do no harm. Nor does it matter to a lease when its blocks are read: the scheduler keeps them as
they are until everything has arrived (`pagoda.scheduler.core.lane.Lane.lend`). If it gives the transfer up before that,
other content may be read, into blocks of a transfer that does not count any more.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from torch import Tensor

from pagoda.executor.transfer.block_memory import Blocks, Int64


class Source(Protocol):
    """One sender's cache. For one thread."""

    def begin(self, block_ids: Int64) -> None:
        """Begins to read blocks, which exist; several such reads may be under way. Raises OSError."""

    def take(self) -> Blocks | None:
        """What the oldest read has brought, valid until the next call; None if that is not there yet, or there is none.

        Raises OSError when it never will be there.
        """

    def close(self) -> None:
        """What is under way is not wanted any more."""


class MappedSource:
    """Memory that is mapped by this process, the CPU's or a GPU's: blocks are copied from where they are."""

    def __init__(self, memory: Tensor) -> None:
        """memory: [parts, num_blocks, part_bytes] uint8"""
        self._memory = memory
        self._begun: deque[Int64] = deque()

    def begin(self, block_ids: Int64) -> None:
        self._begun.append(block_ids)

    def take(self) -> Blocks | None:
        return Blocks(self._memory, self._begun.popleft()) if self._begun else None

    def close(self) -> None:
        # Unmapped, with the last reference.
        del self._memory
