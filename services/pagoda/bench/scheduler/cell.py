"""A cell: the real scheduler core, its executors, and the messages that wait for its next turn."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pagoda.bench.scheduler.cost import CostModel
from pagoda.bench.scheduler.executor import CountingExecutor
from pagoda.bench.scheduler.histogram import Histogram
from pagoda.bench.scheduler.recorder import Recorder
from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.errors import PagodaError
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.request import Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions, Scheduler
from pagoda.scheduler.core.spec import LaneSpec

ORIGIN = "bench"


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Real time in calls of the core, of all cells together. `settle` comes after the plans are on their way."""

    submit: Histogram = field(default_factory=Histogram)
    commit: Histogram = field(default_factory=Histogram)
    step: Histogram = field(default_factory=Histogram)
    settle: Histogram = field(default_factory=Histogram)


class Lane:
    """An executor, when it will have done what it was sent, and its links to others."""

    def __init__(self, lane_id: str, spec: LaneSpec, cost: CostModel, joined_at: float = 0.0) -> None:
        self.id = lane_id
        self.role = spec.role
        self.executor = CountingExecutor(spec, cost)
        self.joined_at = joined_at
        self.busy_until = 0.0
        self.busy_s = 0.0
        """Spent with steps."""
        # When blocks that are on their way now will have left it, and will have reached it.
        self.sends_until = 0.0
        self.receives_until = 0.0

    def run(self, plan: StepPlan, received_at: float) -> tuple[StepResult, float]:
        """(the result, when the step begins): steps are executed in order, each when those before it are done."""
        result, seconds = self.executor.run(plan)
        began_at = max(self.busy_until, received_at)
        self.busy_until = began_at + seconds
        self.busy_s += seconds
        return result, began_at


class Cell:
    """Its clock, `now`, is that of the simulation, plus, if that is wanted, the real time the core takes in a turn."""

    def __init__(
        self,
        number: int,
        options: CoreOptions,
        recorder: Recorder,
        core_time: CoreTime,
        *,
        measure_overhead: bool,
        on_end: Callable[[Cell, int], None],
    ) -> None:
        """on_end: called with the number of each request that is refused or ends"""
        self.number = number
        self.scheduler = Scheduler(options)
        self.lanes: dict[str, Lane] = {}
        self.inbox: list[Callable[[], None]] = []
        self.now = 0.0
        self.is_turn_due = False
        self.is_tick_due = False
        self.num_plans = 0
        self.last_news_at = 0.0
        """When a request last got a row or a token, or ended."""
        self._recorder = recorder
        self._core_time = core_time
        self._measure_overhead = measure_overhead
        self._on_end = on_end

    def join(self, lane: Lane, spec: LaneSpec) -> None:
        self.scheduler.add_lane(lane.id, spec)
        self.lanes[lane.id] = lane
        self._take_outputs()

    def lose(self, lane: Lane) -> None:
        del self.lanes[lane.id]
        self.scheduler.remove_lane(lane.id, self.now, died=True)
        self._take_outputs()

    def submit(self, number: int, sent: TraceRequest) -> None:
        # The seed is what the executor derives the tokens from.
        sampling = Sampling(seed=sent.stream(number), max_tokens=sent.num_output_tokens, ignore_eos=True)
        assert self.scheduler.model is not None
        request = Request(
            RequestKey(ORIGIN, number),
            array("I", sent.prompt(number, self.scheduler.model.vocab_size).tobytes()),
            sampling,
            priority=sent.priority,
            client_id=sent.client_id,
            timeout_s=sent.timeout_s,
        )
        try:
            with self._timed(self._core_time.submit):
                self.scheduler.submit(request, self.now)
        except PagodaError as error:
            self._recorder.refuse(number, error, self.now)
            self._on_end(self, number)

    def commit(self, lane: Lane, result: StepResult) -> None:
        """A result arrives; that of an executor that was lost comes from nowhere."""
        if self.lanes.get(lane.id) is not lane:
            return
        with self._timed(self._core_time.commit):
            self.scheduler.commit(lane.id, result, self.now)
        self._take_outputs()

    def note_arrived(self, lane: Lane, number: int, count: int) -> None:
        """An executor tells how many blocks of a grant have come."""
        if self.lanes.get(lane.id) is lane:
            self.scheduler.note_arrived(lane.id, number, count, self.now)

    def note_failed(self, lane: Lane, number: int) -> None:
        """An executor tells that nobody takes what it pushes."""
        if self.lanes.get(lane.id) is lane:
            self.scheduler.note_failed(lane.id, number, "unreachable", self.now)

    def step(self) -> list[tuple[Lane, StepPlan]]:
        with self._timed(self._core_time.step):
            plans = list(self.scheduler.step(self.now))
        self.num_plans += len(plans)
        return [(self.lanes[lane_id], plan) for lane_id, plan in plans]

    def settle(self) -> None:
        self._take_outputs()
        with self._timed(self._core_time.settle):
            self.scheduler.settle()
        self._take_outputs()

    def _take_outputs(self) -> None:
        outputs = self.scheduler.take_outputs()
        if outputs.admitted or outputs.tokens or outputs.ended:
            self.last_news_at = self.now
            self._recorder.take(outputs, self.now)
            for request in outputs.ended:
                self._on_end(self, request.key.number)

    @contextmanager
    def _timed(self, calls: Histogram) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            calls.add(seconds)
            if self._measure_overhead:
                self.now += seconds
