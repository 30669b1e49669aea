"""The event loop: arrivals, results, losses and joins of executors, and the turns of the cells, in virtual time.

Everything that reaches a cell waits in its inbox for the cell's next turn, which comes at once, or, where the real time
of the core counts, when the turn before is over. A turn takes what there is, makes one step, and sends the plans.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

import numpy as np

from pagoda.bench.scheduler.cell import Cell, CoreTime, Lane
from pagoda.bench.scheduler.cost import CostModel
from pagoda.bench.scheduler.recorder import Recorder
from pagoda.bench.scheduler.router import make_router
from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.scheduler.core.scheduler import CoreOptions
from pagoda.scheduler.core.spec import LaneSpec

# A cell with requests takes a turn at least this often: deadlines pass without an event.
TICK_S = 1.0
# A cell with executors and requests in which nothing happens for so long is stuck.
STALL_S = 3600.0
_EVENT, _TURN = 0, 1


class StalledError(RuntimeError):
    """The core has requests and executors and does nothing."""


@dataclass(frozen=True)
class Cluster:
    """What is simulated."""

    num_cells: int
    num_executors_per_cell: int
    lane: LaneSpec
    cost: CostModel
    core: CoreOptions
    routing: str = "round-robin"
    transport_s: float = 0.0
    """One way between scheduler and executor."""
    losses: tuple[tuple[float, int], ...] = ()
    """(time, number of executors that die)"""
    joins: tuple[tuple[float, int], ...] = ()
    """(time, number of executors that join the cells with the fewest)"""
    measure_overhead: bool = False
    seed: int = 0
    """Of which executors die."""
    sample_interval_s: float = 0.1


class Simulation:
    """One run; `recorder`, `core_time` and `cells` tell what came of it."""

    def __init__(self, cluster: Cluster, trace: Sequence[TraceRequest]) -> None:
        self.now = 0.0
        self.recorder = Recorder(trace)
        self.core_time = CoreTime()
        self.num_lost = 0
        self.cells = [
            Cell(
                number,
                cluster.core,
                self.recorder,
                self.core_time,
                measure_overhead=cluster.measure_overhead,
                on_end=self._note_end,
            )
            for number in range(cluster.num_cells)
        ]
        self._cluster = cluster
        self._trace = trace
        self._router = make_router(cluster.routing)
        self._loads = [0] * cluster.num_cells
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lane_numbers = itertools.count()
        self._rng = np.random.default_rng(cluster.seed)
        self._next_sample_s = 0.0
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        heads = []
        for number, request in enumerate(trace):
            if request.follows is None:
                heads.append(number)
            else:
                self._followers[request.follows].append(number)
        self._heads = iter(sorted(heads, key=lambda number: trace[number].arrival_s))
        for cell in self.cells:
            for _ in range(cluster.num_executors_per_cell):
                self._join(cell)

    def run(self, on_end: Callable[[], object] = lambda: None) -> None:
        """Until every request has ended. on_end: called for each."""
        self._on_end = on_end
        for time_s, count in self._cluster.losses:
            self._at(time_s, partial(self._lose_some, count))
        for time_s, count in self._cluster.joins:
            self._at(time_s, partial(self._join_some, count))
        self._expect_next_head()
        while self._events:
            time_s, _, _, action = heappop(self._events)
            self._sample_until(time_s)
            self.now = time_s
            action()

    # Requests

    def _expect_next_head(self) -> None:
        number = next(self._heads, None)
        if number is not None:
            self._at(self._trace[number].arrival_s, partial(self._arrive_head, number))

    def _arrive_head(self, number: int) -> None:
        self._arrive(number)
        self._expect_next_head()

    def _arrive(self, number: int) -> None:
        request = self._trace[number]
        self.recorder.send(number, self.now)
        index = self._router.choose(number, request, self._loads)
        self._loads[index] += 1
        cell = self.cells[index]
        self._post(cell, partial(cell.submit, number, request))

    def _note_end(self, cell: Cell, number: int) -> None:
        self._loads[cell.number] -= 1
        for follower in self._followers.pop(number, ()):
            self._at(cell.now + self._trace[follower].arrival_s, partial(self._arrive, follower))
        self._on_end()

    # Executors

    def _join(self, cell: Cell) -> None:
        lane = Lane(str(next(self._lane_numbers)), self._cluster.lane, self._cluster.cost)
        cell.join(lane, self._cluster.lane)

    def _join_some(self, count: int) -> None:
        for _ in range(count):
            cell = min(self.cells, key=lambda cell: len(cell.lanes))
            self._join(cell)
            self._post(cell)

    def _lose_some(self, count: int) -> None:
        lanes = [(cell, lane) for cell in self.cells for lane in cell.lanes.values()]
        for index in self._rng.permutation(len(lanes))[:count]:
            cell, lane = lanes[index]
            cell.now = max(cell.now, self.now)
            cell.lose(lane)
            self.num_lost += 1
            self._post(cell)

    # Turns

    def _post(self, cell: Cell, message: Callable[[], None] | None = None) -> None:
        """The cell's next turn, which comes as soon as it can, sees to `message`."""
        if message:
            cell.inbox.append(message)
        if not cell.is_turn_due:
            cell.is_turn_due = True
            # Behind everything else of the same moment.
            self._at(max(self.now, cell.now), partial(self._turn, cell), _TURN)

    def _turn(self, cell: Cell) -> None:
        cell.is_turn_due = False
        cell.now = self.now
        messages, cell.inbox = cell.inbox, []
        for message in messages:
            message()
        while plans := cell.step():
            for lane, plan in plans:
                result = lane.run(plan, cell.now + self._cluster.transport_s)
                arrival_s = lane.busy_until + self._cluster.transport_s
                self._at(arrival_s, partial(self._post, cell, partial(cell.commit, lane, result)))
        cell.settle()
        if cell.scheduler.requests and not cell.is_tick_due:
            cell.is_tick_due = True
            self._at(self.now + TICK_S, partial(self._tick, cell))

    def _tick(self, cell: Cell) -> None:
        cell.is_tick_due = False
        if cell.scheduler.requests:
            if cell.lanes and self.now - cell.last_news_at > STALL_S:
                raise StalledError(f"nothing has happened for {STALL_S:g} s: {cell.scheduler.check_integrity()}")
            self._post(cell)

    def _at(self, time_s: float, action: Callable[[], None], kind: int = _EVENT) -> None:
        heappush(self._events, (time_s, kind, next(self._order), action))

    def _sample_until(self, time_s: float) -> None:
        """Nothing changes between events."""
        while self._next_sample_s <= time_s:
            num_waiting = sum(len(cell.scheduler.waiting) for cell in self.cells)
            lanes = [lane for cell in self.cells for lane in cell.scheduler.lanes.values()]
            num_running = sum(len(cell.scheduler.requests) for cell in self.cells) - num_waiting
            num_held = sum(lane.pool.num_referenced for lane in lanes)
            kv_use = num_held / (len(lanes) * self._cluster.lane.num_blocks) if lanes else 0.0
            self.recorder.sample(self._next_sample_s, num_running, num_waiting, kv_use)
            self._next_sample_s += self._cluster.sample_interval_s
