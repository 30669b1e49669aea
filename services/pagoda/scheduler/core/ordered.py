"""Queues whose order is fixed when a request arrives: first come first served, with or without priorities.

They know nothing of clients, and nothing of what runs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from pagoda.scheduler.core.request import Request

Rank = tuple[float, ...]


class RankedRequests:
    """Requests by rank, lowest first; no two have the same.

    Requests mostly join at the back and leave at the front, and a deque is cheap there; so is one that comes back
    to the front. In the middle of 10,000 it takes a few microseconds.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[Rank, Request]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        """In the loop, the request just yielded may be removed."""
        entries = self._entries
        position = 0
        while position < len(entries):
            entry = entries[position]
            yield entry[1]
            if position < len(entries) and entries[position] is entry:
                position += 1

    def add(self, rank: Rank, request: Request) -> None:
        entries, entry = self._entries, (rank, request)
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)

    def remove(self, rank: Rank, request: Request) -> None:
        entries = self._entries
        if entries[0][1] is request:
            entries.popleft()
            return
        index = bisect_left(entries, rank, key=itemgetter(0))
        assert entries[index][1] is request
        del entries[index]


class FcfsQueue:
    """First come first served.

    One that comes back after a preemption goes in front of everyone who arrived after it. With a tie window of w
    seconds, those that arrive in the same interval [i*w, (i+1)*w) count as simultaneous, and shorter prompts go
    first: nobody is passed by a request that arrived a window later, or more.
    """

    charges_outputs = False

    def __init__(self, max_num_waiting: int, tie_window_s: float = 0.0) -> None:
        self._max_num_waiting = max_num_waiting
        self._tie_window_s = tie_window_s
        self._waiting = RankedRequests()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting)

    def refuses(self, request: Request) -> bool:
        return len(self._waiting) >= self._max_num_waiting

    def add(self, request: Request) -> None:
        self._waiting.add(self.rank(request), request)

    def remove(self, request: Request) -> None:
        self._waiting.remove(self.rank(request), request)

    def admit(self, request: Request, num_uncached_tokens: int) -> None:
        self._waiting.remove(self.rank(request), request)

    def finish(self, request: Request) -> None:
        pass

    def rank(self, request: Request) -> Rank:
        if self._tie_window_s:
            return request.arrived_at // self._tie_window_s, request.num_prompt_tokens, request.arrival
        return (request.arrival,)

    def slot(self, request: Request) -> int:
        return 0

    def charge_outputs(self, slots: NDArray[np.intp]) -> None:
        pass


class PriorityQueue(FcfsQueue):
    """Lower `priority` values first; among equals, first come first served."""

    def rank(self, request: Request) -> Rank:
        return (request.priority, *super().rank(request))
