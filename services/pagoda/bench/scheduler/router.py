"""Which cell a request goes to. Knows the cells' loads, in unfinished requests, and nothing else of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pagoda.bench.scheduler.trace import TraceRequest, tokens_at

# Routed by prefix, a cell gets at most BOUND times its share of the load, and SLACK requests: among few, one more is no
# reason to compute a prefix again.
BOUND, SLACK = 1.25, 8


class Router(Protocol):
    def choose(self, number: int, request: TraceRequest, loads: Sequence[int]) -> int:
        """number: the request's own; loads: [num_cells]"""


class RoundRobin:
    def __init__(self) -> None:
        self._num_routed = 0

    def choose(self, number: int, request: TraceRequest, loads: Sequence[int]) -> int:
        self._num_routed += 1
        return (self._num_routed - 1) % len(loads)


class LeastLoaded:
    def choose(self, number: int, request: TraceRequest, loads: Sequence[int]) -> int:
        return min(range(len(loads)), key=loads.__getitem__)


class ByPrefix:
    """Requests of one prefix, or without one those of one session, go to the same cell while it has room.

    Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni et al. 2018): every name has its own
    order of the cells, and goes to the first that has room.
    """

    def choose(self, number: int, request: TraceRequest, loads: Sequence[int]) -> int:
        limit = BOUND * sum(loads) / len(loads) + SLACK
        return next(cell for cell in _order(request.routing_stream(number), len(loads)) if loads[cell] < limit)


def _order(name: int, num_cells: int) -> list[int]:
    hashes = tokens_at(np.full(num_cells, name, np.uint64), np.arange(num_cells), 1 << 32)
    return [int(cell) for cell in np.argsort(hashes)]


def make_router(name: str) -> Router:
    routers: dict[str, Router] = {
        "round-robin": RoundRobin(),
        "least-loaded": LeastLoaded(),
        "prefix": ByPrefix(),
    }
    return routers[name]
