"""The scheduler of one cell: requests in, plans out, results in, tokens out.

    scheduler.add_lane("executor-1", spec, now)
    scheduler.submit(request, now)
    for lane_id, plan in scheduler.step(now):
        ...                                  # send it; later:
        scheduler.commit(lane_id, result)
    tokens, ended = scheduler.take_outputs()

It knows no transport and no clock: whoever drives it passes `now` (seconds, monotonic). What must hold: a request
that was accepted ends exactly once; its tokens do not depend on what else runs, on preemption, or on the loss
of an executor; every block has an owner, or is free, or is cached.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pagoda.errors import PagodaError, ResourceExhaustedError, UnavailableError
from pagoda.scheduler.core.draft import Draft
from pagoda.scheduler.core.lane import Lane
from pagoda.scheduler.core.placement import Candidate, choose
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.queue import Policy, PriorityThenArrival, WaitingQueue
from pagoda.scheduler.core.request import End, FinishReason, Request, RequestKey
from pagoda.scheduler.core.spec import LaneSpec, ModelSpec
from pagoda.scheduler.core.validation import check_fits, check_parameters

# A request that was running on this many executors when they died may be what killed them.
MAX_LANES_LOST = 3


@dataclass(frozen=True, slots=True)
class CoreOptions:
    max_num_waiting: int = 1024
    enable_prefix_caching: bool = True
    no_executor_timeout_s: float = 60.0
    max_plans_in_flight: int = 1
    """Per lane."""


@dataclass(slots=True)
class Counters:
    """Since the start. requests_admitted = requests_finished + requests_aborted + waiting + running."""

    requests_admitted: int = 0
    requests_finished: int = 0
    """Ended by stop, length or an error."""
    requests_aborted: int = 0
    requests_rejected: int = 0
    preemptions: int = 0
    recoveries: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


@dataclass(slots=True)
class Outputs:
    """What happened to requests since it was last asked; tokens come before ends."""

    admitted: list[Request] = field(default_factory=list)
    """Those that got their first row, so that `num_cached_tokens` is known."""
    tokens: list[tuple[Request, int]] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)


class Scheduler:
    """All requests and all lanes of a cell."""

    def __init__(self, options: CoreOptions | None = None, policy: Policy | None = None) -> None:
        self.options = options or CoreOptions()
        self.counters = Counters()
        self.lanes: dict[str, Lane] = {}
        self.waiting = WaitingQueue()
        self.requests: dict[RequestKey, Request] = {}
        """The unfinished ones."""
        self.model: ModelSpec | None = None
        """Of the lanes there are, or of the last one there was."""
        self._policy = policy or PriorityThenArrival()
        self._refusal: UnavailableError | None = None
        self._outputs = Outputs()
        self._num_arrivals = 0
        self._without_lanes_since = 0.0

    @property
    def num_running(self) -> int:
        return len(self.requests) - len(self.waiting)

    @property
    def is_ready(self) -> bool:
        """At least one executor runs and requests are admitted."""
        return bool(self.lanes) and self._refusal is None

    @property
    def is_draining(self) -> bool:
        return self._refusal is not None

    # Requests

    def submit(self, request: Request, now: float) -> None:
        """Accepts `request`, which from now on will end exactly once. Raises PagodaError when it is refused."""
        assert request.key not in self.requests, f"{request.key} is already running"
        try:
            self._check(request)
        except PagodaError:
            self.counters.requests_rejected += 1
            raise
        self._num_arrivals += 1
        request.arrival = self._num_arrivals
        request.arrived_at = now
        request.rank = self._policy.rank(request)
        self.requests[request.key] = request
        self.counters.requests_admitted += 1
        self.waiting.add(request)
        if self.model:
            self._bind(request, self.model)

    def abort(self, key: RequestKey) -> None:
        """Ends a request whose client went away. One that has ended already is left alone."""
        if request := self.requests.get(key):
            self._end(request, End(FinishReason.ABORT))

    def abort_all_of(self, origin: str) -> None:
        """Aborts everything that `origin` sent."""
        for key in [key for key in self.requests if key.origin == origin]:
            self.abort(key)

    def refuse_new(self, error: UnavailableError) -> None:
        """Answers every further request with `error`; those that were accepted go on."""
        self._refusal = error

    def end_all(self, error: PagodaError) -> None:
        """Ends every request with `error`."""
        for request in list(self.requests.values()):
            self._end(request, End(FinishReason.ERROR, error=error))

    def take_outputs(self) -> Outputs:
        outputs, self._outputs = self._outputs, Outputs()
        return outputs

    # Lanes

    def check_lane(self, spec: LaneSpec) -> None:
        """Raises PagodaError for an executor that cannot join the lanes there are."""
        spec.check()
        for lane in self.lanes.values():
            spec.check_joins(lane.spec)

    def add_lane(self, lane_id: str, spec: LaneSpec) -> None:
        """An executor with an empty batch joins. Raises PagodaError when it does not fit the others."""
        assert lane_id not in self.lanes
        self.check_lane(spec)
        if not self.lanes:
            self._serve(spec.model)
        self.lanes[lane_id] = Lane(
            lane_id,
            spec,
            enable_prefix_caching=self.options.enable_prefix_caching,
            max_plans_in_flight=self.options.max_plans_in_flight,
        )

    def remove_lane(self, lane_id: str, now: float, *, died: bool = True) -> None:
        """An executor left. Its requests go back to the queue with the tokens so far and are computed again elsewhere.

        died: False when it said goodbye, which is no request's fault.
        """
        lane = self.lanes.pop(lane_id)
        if not self.lanes:
            self._without_lanes_since = now
        for row in lane.running:
            request = row.request
            request.row = None
            self.waiting.add(request)
            self.counters.recoveries += 1
            request.num_lanes_lost += died
            if request.num_lanes_lost >= MAX_LANES_LOST:
                message = f"{MAX_LANES_LOST} executors died while they ran this request; it will not be tried again"
                self._end_with_error(request, UnavailableError(message, reason="EXECUTOR_LOST"))

    def commit(self, lane_id: str, result: StepResult) -> None:
        """Applies what a lane's oldest step in flight brought.

        Raises BadResultError, with nothing changed, for a result that is not that step's.
        """
        for request, token_id in self.lanes[lane_id].commit(result):
            request.token_ids.append(token_id)
            self.counters.generation_tokens += 1
            self._outputs.tokens.append((request, token_id))
            if end := request.natural_end():
                self._end(request, end)

    # Steps

    def step(self, now: float) -> list[tuple[str, StepPlan]]:
        """The next plan of every lane that is free to take one and has something to do."""
        self._expire(now)
        drafts = self._draft(now)
        self._admit(drafts)
        return [(lane_id, plan) for lane_id, draft in drafts.items() if (plan := draft.finish())]

    def check_integrity(self) -> list[str]:
        """Broken invariants, as sentences; empty when all hold."""
        violations = [violation for lane in self.lanes.values() for violation in lane.check_integrity()]
        places = Counter(request.key for request in self.waiting)
        places.update(row.request.key for lane in self.lanes.values() for row in lane.running)
        for key in self.requests.keys() | places.keys():
            if places[key] != 1 or key not in self.requests:
                known = "unfinished" if key in self.requests else "unknown"
                violations.append(f"request {key} is {known} and stands in {places[key]} places")
        return violations

    def _draft(self, now: float) -> dict[str, Draft]:
        """Running requests take their share first, and those without a block go back to the queue."""
        drafts: dict[str, Draft] = {}
        for lane_id, lane in self.lanes.items():
            if lane.can_plan and (draft := Draft.begin(lane, now)):
                drafts[lane_id] = draft
                for request in draft.preempted:
                    self.waiting.add(request)
                    self.counters.preemptions += 1
        return drafts

    def _admit(self, drafts: dict[str, Draft]) -> None:
        """Waiting requests take what is left, in order, up to the first that fits nowhere."""
        if not drafts or not self.waiting:
            return
        candidates = [Candidate(lane, drafts.get(lane_id)) for lane_id, lane in self.lanes.items()]
        admitted: list[Request] = []
        for request in self.waiting:
            offer = choose(request, candidates)
            if offer is None:
                break
            offer.reserve()
            # What is worth waiting for is there in the next step, or in one soon after.
            if draft := offer.draft:
                draft.admit(request, offer.prefix)
                admitted.append(request)
                self._note_admission(request, offer.prefix.num_tokens)
        for request in admitted:
            self.waiting.remove(request)

    def _note_admission(self, request: Request, num_cached: int) -> None:
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(num_cached, request.num_prompt_tokens)
            self.counters.prompt_tokens += request.num_prompt_tokens
            self.counters.prefix_cache_queries += request.num_prompt_tokens
            self.counters.prefix_cache_hits += request.num_cached_tokens
            self._outputs.admitted.append(request)

    def _check(self, request: Request) -> None:
        if self._refusal:
            raise self._refusal
        check_parameters(request)
        if self.model:
            check_fits(request, self.model)
        # Who brings tokens along was accepted before, by a scheduler that is gone.
        if len(self.waiting) >= self.options.max_num_waiting and request.num_output_tokens == 0:
            raise ResourceExhaustedError(
                f"the queue is full: {len(self.waiting)} requests are waiting (max_num_waiting); try again later",
                reason="QUEUE_FULL",
            )

    def _serve(self, model: ModelSpec) -> None:
        """The first executor came, or the first after all had left: the waiting requests meet its model."""
        previous, self.model = self.model, model
        for request in list(self.waiting):
            request.forget_hashes()
            if previous and previous != model:
                message = "the cell now serves another model than the one this request was sent to; send it again"
                self._end_with_error(request, UnavailableError(message, reason="MODEL_CHANGED"))
                continue
            try:
                check_fits(request, model)
            except PagodaError as error:
                self._end_with_error(request, error)
            else:
                self._bind(request, model)

    def _bind(self, request: Request, model: ModelSpec) -> None:
        sampling = request.sampling
        max_tokens = sampling.max_tokens
        if max_tokens is None:
            request.max_num_tokens = model.max_model_len
        else:
            request.max_num_tokens = request.num_prompt_tokens + max_tokens
        request.stop_ids = sampling.stop_token_ids
        if not sampling.ignore_eos:
            request.stop_ids |= model.eos_token_ids
        # A request that was handed over may have all its tokens.
        if end := request.natural_end():
            self._end(request, end)

    def _expire(self, now: float) -> None:
        if self.lanes:
            return
        for request in [request for request in self.waiting if self._deadline(request) <= now]:
            message = f"no executor joined within {self.options.no_executor_timeout_s:g} s; try again later"
            self._end_with_error(request, UnavailableError(message, reason="NO_EXECUTOR"))

    def _deadline(self, request: Request) -> float:
        return max(self._without_lanes_since, request.arrived_at) + self.options.no_executor_timeout_s

    def _end_with_error(self, request: Request, error: PagodaError) -> None:
        self._end(request, End(FinishReason.ERROR, error=error))

    def _end(self, request: Request, end: End) -> None:
        assert request.end is None
        request.end = end
        del self.requests[request.key]
        if request.row is not None:
            request.row.lane.leave(request.row)
        else:
            self.waiting.remove(request)
        if end.reason is FinishReason.ABORT:
            self.counters.requests_aborted += 1
        else:
            self.counters.requests_finished += 1
        self._outputs.ended.append(request)
