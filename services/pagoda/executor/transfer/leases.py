"""Which push may write which block: the only way into a cache for what other processes send.

A lease names the blocks of one transfer, and ends when all of them have arrived, when it is revoked, at its deadline,
or with the session. Whatever comes for a lease that is no more, or never was, is dropped and counted. Checking a push
and copying its blocks happen under the lock that ending a lease takes, so when a lease is known to have ended, nothing
of it is still being written.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagoda.executor.transfer.block_memory import BlockMemory, Blocks, Int64
from pagoda.executor.transfer.reports import Counters, Reason


@dataclass(slots=True)
class _Lease:
    block_ids: Int64
    arrived: NDArray[np.bool_]
    deadline: float


class Leases:
    """The leases on one cache. Usable from any thread."""

    def __init__(
        self,
        blocks: BlockMemory,
        max_leases: int,
        on_news: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_news: called, in any thread, when there are arrivals or failures to take"""
        self.session = secrets.token_hex(16)
        """Changes when all is forgotten."""
        self.next_deadline = math.inf
        """No lease ends by itself before this time."""
        self._blocks = blocks
        self._max_leases = max_leases
        self._on_news = on_news
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: dict[int, _Lease] = {}
        # Blocks of all leases.
        self._leased: NDArray[np.bool_] = np.zeros(blocks.num_blocks, np.bool_)
        self._arrivals: dict[int, int] = {}
        self._failures: dict[int, Reason] = {}
        self._counters = Counters()

    def grant(self, transfer_id: int, block_ids: Sequence[int] | Int64, seconds: float) -> None:
        """Pushes of `transfer_id` may write block_ids[i] for position i, each once, for so many seconds.

        Raises ValueError for a transfer that has a lease, for blocks that do not exist or have one, and for more leases
        than there may be, counting those of which arrivals or failures were not taken.
        """
        ids = np.asarray(block_ids, np.int64)
        if not 0 <= transfer_id < 1 << 64:
            raise ValueError(f"transfer id {transfer_id} is no u64")
        if not len(ids) or ids.min() < 0 or ids.max() >= self._blocks.num_blocks or len(np.unique(ids)) != len(ids):
            raise ValueError(f"a lease needs distinct blocks in [0, {self._blocks.num_blocks}), got {ids.tolist()}")
        with self._lock:
            if transfer_id in self._leases:
                raise ValueError(f"transfer {transfer_id} has a lease")
            if max(len(self._leases), len(self._arrivals), len(self._failures)) >= self._max_leases:
                raise ValueError(f"there are {self._max_leases} leases; no more are possible")
            if self._leased[ids].any():
                raise ValueError(f"blocks {ids[self._leased[ids]].tolist()} belong to another lease")
            self._leased[ids] = True
            deadline = self._clock() + seconds
            self._leases[transfer_id] = _Lease(ids, np.zeros(len(ids), np.bool_), deadline)
            self.next_deadline = min(self.next_deadline, deadline)

    def revoke(self, transfer_id: int) -> None:
        """When it returns, nothing of the transfer will be written any more, or told of. Others have no such lease."""
        with self._lock:
            if transfer_id in self._leases:
                self._end(transfer_id)
            self._arrivals.pop(transfer_id, None)
            self._failures.pop(transfer_id, None)

    def reset(self) -> None:
        """Revokes all leases. Those who know of the session are of an earlier one from now on."""
        with self._lock:
            self.session = secrets.token_hex(16)
            self._leases.clear()
            self._leased[:] = False
            self._arrivals.clear()
            self._failures.clear()
            self.next_deadline = math.inf

    def write(
        self, session: str, transfer_id: int, first_position: int, blocks: Blocks, crc32: int | None
    ) -> Reason | None:
        """Writes blocks that have come, as far as they had not come before. None, or why they were not written.

        session: of the one that sent them
        crc32: of all that `blocks` are taken from, which is a piece
        """
        corrupt = crc32 is not None and zlib.crc32(blocks.source.numpy().data) != crc32
        num_blocks = len(blocks.ids)
        with self._lock:
            lease = self._valid(session, transfer_id)
            if lease is None or not 0 < num_blocks <= len(lease.block_ids) - first_position:
                self._counters.late_blocks += num_blocks
                return Reason.REFUSED
            if corrupt:
                self._fail(transfer_id, Reason.CORRUPT)
                return Reason.CORRUPT
            positions = slice(first_position, first_position + num_blocks)
            self._write_new(lease.block_ids[positions], ~lease.arrived[positions], blocks)
            lease.arrived[positions] = True
            self._arrivals[transfer_id] = int(np.count_nonzero(lease.arrived))
            if self._arrivals[transfer_id] == len(lease.arrived):
                self._end(transfer_id)
        self._on_news()
        return None

    def expire(self) -> None:
        """Ends the leases that are over, and tells of them."""
        if (now := self._clock()) < self.next_deadline:
            return
        with self._lock:
            for transfer_id in [each for each, lease in self._leases.items() if lease.deadline <= now]:
                self._fail(transfer_id, Reason.TIMEOUT)
            self.next_deadline = min((lease.deadline for lease in self._leases.values()), default=math.inf)

    def take_arrivals(self) -> list[tuple[int, int]]:
        """(transfer id, positions that have arrived) of transfers of which more have arrived since the last call."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, {}
        return list(arrivals.items())

    def take_failures(self) -> list[tuple[int, Reason]]:
        """Transfers whose lease ended before all was there: TIMEOUT or CORRUPT."""
        with self._lock:
            failures, self._failures = self._failures, {}
        return list(failures.items())

    @property
    def has_news(self) -> bool:
        """Whether there are arrivals or failures to take."""
        return bool(self._arrivals or self._failures)

    def counters(self) -> Counters:
        """A copy."""
        with self._lock:
            return deepcopy(self._counters)

    def count_failure(self, reason: Reason) -> None:
        """Of something that no lease stands for."""
        with self._lock:
            self._counters.failures[reason] += 1

    def _valid(self, session: str, transfer_id: int) -> _Lease | None:
        lease = self._leases.get(transfer_id) if session == self.session else None
        if lease is not None and lease.deadline <= self._clock():
            self._fail(transfer_id, Reason.TIMEOUT)
            return None
        return lease

    def _write_new(self, block_ids: Int64, new: NDArray[np.bool_], blocks: Blocks) -> None:
        started = time.perf_counter()
        self._blocks.write(block_ids[new], blocks.source, blocks.ids[new])
        num_new = int(np.count_nonzero(new))
        self._counters.seconds += time.perf_counter() - started
        self._counters.blocks += num_new
        self._counters.bytes += num_new * self._blocks.block_bytes
        self._counters.duplicate_blocks += len(new) - num_new

    def _fail(self, transfer_id: int, reason: Reason) -> None:
        self._end(transfer_id)
        self._failures[transfer_id] = reason
        self._counters.failures[reason] += 1
        self._on_news()

    def _end(self, transfer_id: int) -> None:
        self._leased[self._leases.pop(transfer_id).block_ids] = False
