"""What executors tell of their transfers, added up: it never shrinks, whoever comes and goes.

An executor counts since its process started, and tells so in its registration and its heartbeats. What it tells later
less what it told before is what has happened, in this session and since this scheduler started.
"""

from __future__ import annotations

from collections.abc import Iterator

from pagoda.scheduler.codec import failure_word
from pagoda.v1.scheduler_pb2 import ExecutorTransfers, TransferCounters, TransferStats

# Executors that are remembered, by their names; of more, the one that was silent for longest is forgotten.
_MAX_EXECUTORS = 1024


class TransferTotals:
    """By executor, and of the cell."""

    def __init__(self) -> None:
        self.num_blocks = 0
        """Received by anybody."""
        self.num_bytes = 0
        self._stats: dict[str, TransferStats] = {}

    def __iter__(self) -> Iterator[ExecutorTransfers]:
        return (ExecutorTransfers(name=name, stats=stats) for name, stats in self._stats.items())

    def add(self, name: str, before: TransferStats, after: TransferStats) -> None:
        """The executor `name` counted `before`, and now counts `after`."""
        stats = self._stats[name] = self._stats.pop(name, TransferStats())
        self.num_blocks += max(0, after.received.blocks - before.received.blocks)
        self.num_bytes += max(0, after.received.bytes - before.received.bytes)
        _add(stats.sent, before.sent, after.sent)
        _add(stats.received, before.received, after.received)
        if len(self._stats) > _MAX_EXECUTORS:
            del self._stats[next(iter(self._stats))]


def _add(total: TransferCounters, before: TransferCounters, after: TransferCounters) -> None:
    for field in ("blocks", "bytes", "seconds", "late_blocks", "duplicate_blocks"):
        grown = getattr(after, field) - getattr(before, field)
        setattr(total, field, getattr(total, field) + max(0, grown))
    for reason, count in after.failures.items():
        total.failures[failure_word(reason)] += max(0, count - before.failures.get(reason, 0))
