"""The event loop: arrivals, results, losses and joins of executors, and the turns of the cells, in virtual time.

Everything that reaches a cell waits in its inbox for the cell's next turn, which comes at once, or, where the real time
of the core counts, when the turn before is over. A turn takes what there is, makes one step, and sends the plans.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from pagoda.bench.scheduler.cell import Cell, CoreTime, Lane
from pagoda.bench.scheduler.cost import CostModel
from pagoda.bench.scheduler.recorder import Recorder
from pagoda.bench.scheduler.router import make_router
from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.scheduler.core.plan import Push
from pagoda.scheduler.core.scheduler import CoreOptions
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec

# A cell with requests takes a turn at least this often: deadlines pass without an event.
TICK_S = 1.0
# A cell with executors and requests in which nothing happens for so long is stuck.
STALL_S = 3600.0
_EVENT, _TURN = 0, 1


class StalledError(RuntimeError):
    """The core has requests and executors and does nothing."""


class Moment(NamedTuple):
    """When executors come or go."""

    time_s: float
    num_executors: int = 1
    role: ExecutorRole | None = None
    """None: any, of those that go; mixed, of those that come."""


@dataclass(frozen=True)
class Cluster:
    """What is simulated."""

    num_cells: int
    roles: tuple[ExecutorRole, ...]
    """Of the executors of each cell at the start."""
    lane: LaneSpec
    """Every executor, but for its role."""
    cost: CostModel
    core: CoreOptions
    routing: str = "round-robin"
    transport_s: float = 0.0
    """One way between scheduler and executor."""
    transfer_bandwidth: float = 10e9
    """Bytes per second that leave an executor for others, and that reach one."""
    transfer_latency_s: float = 0.0
    """Of each push, besides."""
    losses: tuple[Moment, ...] = ()
    joins: tuple[Moment, ...] = ()
    """To the cells with the fewest executors."""
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
        self.block_bytes = cluster.lane.block_size * cluster.cost.kv_bytes_per_token
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
            for role in cluster.roles:
                self._join(cell, role)

    def run(self, on_end: Callable[[], object] = lambda: None) -> None:
        """Until every request has ended. on_end: called for each."""
        self._on_end = on_end
        for loss in self._cluster.losses:
            self._at(loss.time_s, partial(self._lose_some, loss))
        for join in self._cluster.joins:
            self._at(join.time_s, partial(self._join_some, join))
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

    def _join(self, cell: Cell, role: ExecutorRole) -> None:
        spec = replace(self._cluster.lane, role=role)
        lane = Lane(str(next(self._lane_numbers)), spec, self._cluster.cost, self.now)
        cell.join(lane, spec)

    def _join_some(self, moment: Moment) -> None:
        for _ in range(moment.num_executors):
            cell = min(self.cells, key=lambda cell: len(cell.lanes))
            self._join(cell, moment.role or ExecutorRole.MIXED)
            self._post(cell)

    def _lose_some(self, moment: Moment) -> None:
        lanes = [
            (cell, lane) for cell in self.cells for lane in cell.lanes.values() if moment.role in (None, lane.role)
        ]
        for index in self._rng.permutation(len(lanes))[: moment.num_executors]:
            cell, lane = lanes[index]
            cell.now = max(cell.now, self.now)
            cell.lose(lane)
            self.num_lost += 1
            self._post(cell)

    # Transfers

    def _send(self, cell: Cell, source: Lane, push: Push) -> None:
        """Blocks leave, when those are through that go the same way."""
        target = cell.lanes.get(push.target)
        if cell.lanes.get(source.id) is not source:
            return
        if target is None:
            self._report(cell, partial(cell.note_failed, source, push.number))
            return
        num_bytes = len(push.block_ids) * self.block_bytes
        took_s = num_bytes / self._cluster.transfer_bandwidth
        target.receives_until = source.sends_until = max(self.now, source.sends_until, target.receives_until) + took_s
        arrival_s = source.sends_until + self._cluster.transfer_latency_s
        self._at(arrival_s, partial(self._deliver, cell, source, target, push))

    def _deliver(self, cell: Cell, source: Lane, target: Lane, push: Push) -> None:
        """Blocks arrive, if the two are still there."""
        if cell.lanes.get(source.id) is not source:
            return
        if cell.lanes.get(target.id) is not target:
            self._report(cell, partial(cell.note_failed, source, push.number))
        elif (count := target.executor.receive(push)) is not None:
            self._report(cell, partial(cell.note_arrived, target, push.number, count))

    def _report(self, cell: Cell, message: Callable[[], None]) -> None:
        self._at(self.now + self._cluster.transport_s, partial(self._post, cell, message))

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
                result, began_at = lane.run(plan, cell.now + self._cluster.transport_s)
                for push in plan.pushes:
                    self._at(began_at, partial(self._send, cell, lane, push))
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
