"""What both sides tell their owners: reasons for failures, counts for metrics, and a file descriptor that wakes."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from pagoda.v1 import transfer_pb2 as pb


class Reason(StrEnum):
    """Why a transfer failed."""

    UNREACHABLE = "unreachable"
    """No endpoint of the peer answers, the connection broke, or the peer's memory cannot be read."""

    REFUSED = "refused"
    """The peer has no such lease, or not any more."""

    TIMEOUT = "timeout"
    FULL = "full"
    """The memory for blocks on their way, or a number of peers, is used up."""

    CORRUPT = "corrupt"
    """What arrived is not what was sent."""

    LAYOUT = "layout"
    """The peer's blocks are not like ours."""


def to_problem(reason: Reason) -> str:
    """The name of a `pb.TransferProblem`."""
    return f"TRANSFER_PROBLEM_{reason.name}"


def from_problem(problem: pb.TransferProblem) -> Reason:
    """REFUSED for what only later versions know."""
    with contextlib.suppress(ValueError, KeyError):
        return Reason[pb.TransferProblem.Name(problem).removeprefix("TRANSFER_PROBLEM_")]
    return Reason.REFUSED


@dataclass
class Counters:
    """Since the start."""

    blocks: int = 0
    """Blocks that have left the cache, or were copied into it."""

    bytes: int = 0
    seconds: float = 0.0
    """Spent copying them, on this side."""

    late_blocks: int = 0
    """Blocks that came for no valid lease, and were dropped."""

    duplicate_blocks: int = 0
    """Blocks that had arrived before, and were dropped."""

    failures: Counter[Reason] = field(default_factory=Counter)
    """Failed transfers."""


class Signal:
    """An eventfd: readable from `set` until `clear`. Usable from any thread, and with select, ZeroMQ and asyncio."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)
