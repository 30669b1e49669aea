"""The requests that wait for an executor, in the order in which they will get one."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Protocol

from pagoda.scheduler.core.request import Request


class Policy(Protocol):
    """Who comes first."""

    def rank(self, request: Request) -> tuple[int, ...]:
        """Sorts requests: a lower rank runs first and is preempted last. Unique, and fixed when a request arrives."""


class PriorityThenArrival:
    """Lower `priority` values first; among equals, first come first served."""

    def rank(self, request: Request) -> tuple[int, ...]:
        return request.priority, request.arrival


class WaitingQueue:
    """Requests by rank.

    One that was preempted or lost its executor keeps its rank, and so comes back in front of everyone who arrived
    after it.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_rank)

    def remove(self, request: Request) -> None:
        index = bisect_left(self._requests, request.rank, key=_rank)
        assert self._requests[index] is request
        del self._requests[index]


def _rank(request: Request) -> tuple[int, ...]:
    return request.rank
