"""The scheduler of one cell: requests in, plans out, results in, tokens out.

    scheduler.add_lane("executor-1", spec, now)
    scheduler.submit(request, now)
    for lane_id, plan in scheduler.step(now):
        ...                                  # send it
    scheduler.settle()                       # what can wait until the plans are on their way
    scheduler.commit(lane_id, result, now)
    outputs = scheduler.take_outputs()

It knows no transport and no clock: whoever drives it passes `now` (seconds, monotonic). What must hold: a request
that was accepted ends exactly once; its tokens do not depend on what else runs, on preemption, or on the loss
of an executor; every block has an owner, or is free, or is cached.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pagoda.errors import DeadlineExceededError, PagodaError, ResourceExhaustedError, UnavailableError
from pagoda.scheduler.core.balance import proposals
from pagoda.scheduler.core.counters import Counters, Loss
from pagoda.scheduler.core.draft import Draft
from pagoda.scheduler.core.kv_events import KvEvents
from pagoda.scheduler.core.lane import Commit, Lane
from pagoda.scheduler.core.moves import Failure, MayMove, Moves
from pagoda.scheduler.core.placement import Candidate, Placement
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.queue import make_policy
from pagoda.scheduler.core.request import End, FinishReason, Request, RequestKey
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec
from pagoda.scheduler.core.validation import check_fits, check_parameters

# A request that was running on this many executors when they died, and got no further, may be what killed them. Where
# executors are killed at random, one in ten thousand has been on three of them.
MAX_LANES_LOST = 5

# Steps that may be made before `settle` is called; then the next step calls it itself.
MOST_UNSETTLED_STEPS = 4


@dataclass(frozen=True, slots=True)
class CoreOptions:
    max_num_waiting: int = 1024
    policy: str = "priority"
    """fcfs, priority or fair."""
    client_weights: str = ""
    """For fair, as in "alice=2,bob=0.5"; clients that are not named have 1."""
    tie_window_s: float = 0.0
    """Requests that arrive within the same window of this length go shortest first; 0 = off."""
    enable_prefix_caching: bool = True
    no_executor_timeout_s: float = 60.0
    max_plans_in_flight: int = 0
    """Per lane; 0 = two while its steps are short, else one."""
    inter_token_target_s: float = 0.0
    """Steps get no more prompt tokens than let them last so long; 0 = no target."""
    blocks_ahead: int = 2
    """Blocks left to each running request when another one is admitted: it will soon need them, and would otherwise
    preempt the newcomer after its prompt was computed. 2 was found by simulation: fewer preempt more often, more leave
    memory unused."""
    max_local_prefill_tokens: int = 128
    """What is not cached of a prompt is computed by the lane that decodes if it is no longer than this."""
    transfer_timeout_s: float = 10.0
    """A request whose KV blocks have not arrived on its new lane after so long is computed again."""
    first_move: int = 1
    """Number of the first request that moves; no executor may remember one with this or a higher number."""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """One new token for each of some requests of one origin. Parallel: numbers of their keys, tokens."""

    origin: str
    keys: NDArray[np.uint64]
    token_ids: NDArray[np.uint32]


@dataclass(slots=True)
class Outputs:
    """What happened to requests since it was last asked; tokens come before ends."""

    admitted: list[Request] = field(default_factory=list)
    """Those that got their first row, so that `num_cached_tokens` is known."""
    tokens: list[TokenRun] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)


class Scheduler:
    """All requests and all lanes of a cell."""

    def __init__(self, options: CoreOptions | None = None, kv_events: KvEvents | None = None) -> None:
        """Raises ValueError for options that no policy can be made of.

        kv_events: collects what happens to the blocks that can be found; None: nobody wants to know
        """
        self.options = options or CoreOptions()
        self.counters = Counters()
        self.moves = Moves(
            self.counters, timeout_s=self.options.transfer_timeout_s, first_number=self.options.first_move
        )
        self.lanes: dict[str, Lane] = {}
        self.waiting = make_policy(
            self.options.policy,
            max_num_waiting=self.options.max_num_waiting,
            weights=self.options.client_weights,
            tie_window_s=self.options.tie_window_s,
        )
        self.requests: dict[RequestKey, Request] = {}
        """The unfinished ones."""
        self.model: ModelSpec | None = None
        """Of the lanes there are, or of the last one there was."""
        # (when, arrival, request), soonest first; those that have ended are left behind for a while.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._kv_events = kv_events
        self._refusal: UnavailableError | None = None
        self._outputs = Outputs()
        self._num_arrivals = 0
        self._without_lanes_since = 0.0
        self._last_without_takers = -math.inf
        """When there was last no lane that takes requests."""
        self._block_size = 0
        self._num_unsettled_steps = 0

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
        self.requests[request.key] = request
        self.counters.requests_admitted += 1
        self._queue(request, now)
        if request.timeout_s is not None:
            self._watch(request, now + request.timeout_s)
        if self.model:
            self._bind(request, self.model)
        if request.forked_from is not None:
            parent = self.requests.get(request.forked_from)
            if parent is not None and parent.lane is not None:
                parent.lane.expose(parent.row)

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
            self._serve(spec)
        self.lanes[lane_id] = Lane(
            lane_id,
            spec,
            self.waiting.rank,
            self.counters,
            enable_prefix_caching=self.options.enable_prefix_caching,
            max_plans_in_flight=self.options.max_plans_in_flight,
            kv_events=self._kv_events.add_lane(lane_id, spec.name, spec.block_size) if self._kv_events else None,
        )

    def remove_lane(self, lane_id: str, now: float, *, died: bool = True) -> None:
        """An executor left. Its requests go back to the queue with the tokens so far and are computed again elsewhere.

        died: False when it said goodbye, which is no request's fault.
        """
        lane = self.lanes.pop(lane_id)
        if self._kv_events:
            self._kv_events.remove_lane(lane_id)
        if not self.lanes:
            self._without_lanes_since = now
        running = lane.requests
        # Before their moves end: nothing can be done with rows of a lane that is gone.
        for request in running:
            lane.forget_row(request.row)
        for move in self.moves.of(lane):
            self._recover(self.moves.cancel(move, Failure.EXECUTOR_LOST, now), Loss.EXECUTOR, now)
        self.moves.links.forget(lane)
        for request in running:
            self._recover([request], Loss.EXECUTOR, now)
            request.note_lost(died)
            if request.num_lanes_lost >= MAX_LANES_LOST:
                message = f"{MAX_LANES_LOST} executors died while they ran this request; it will not be tried again"
                self._end_with_error(request, UnavailableError(message, reason="EXECUTOR_LOST"))

    def set_role(self, lane_id: str, role: ExecutorRole) -> None:
        """What an executor does with requests from now on; those that should be elsewhere move."""
        self.lanes[lane_id].role = role

    def begin_leaving(self, lane_id: str) -> None:
        """An executor takes no more requests; those that it has move, or end there. See `may_leave`."""
        self.lanes[lane_id].is_leaving = True

    def may_leave(self, lane_id: str) -> bool:
        """Nobody would notice the executor's end."""
        lane = self.lanes[lane_id]
        return not (lane.num_running or lane.flights or self.moves.of(lane))

    def note_arrived(self, lane_id: str, number: int, count: int, now: float) -> None:
        """`count` blocks of a move have come to an executor so far."""
        self.moves.note_arrived(number, self.lanes[lane_id], count, now)

    def note_failed(self, lane_id: str, number: int, word: str, now: float) -> None:
        """An executor could not push the blocks of a move, or got what is of no use. word: why"""
        self._recover(self.moves.note_failed(number, self.lanes[lane_id], word, now), Loss.BLOCKS, now)

    def commit(self, lane_id: str, result: StepResult, now: float) -> None:
        """Applies what a lane's oldest step in flight brought.

        Raises BadResultError, with nothing changed, for a result that is not that step's.
        """
        lane = self.lanes[lane_id]
        brought = lane.commit(result, now)
        self.moves.links.note_step_began(lane, now)
        if len(brought.rows):
            self.counters.generation_tokens += len(brought.rows)
            if self.waiting.charges_outputs:
                self.waiting.charge_outputs(lane.rows.client_slots[brought.rows])
            self._outputs.tokens += _runs(lane, brought)
        for request in brought.first:
            self._note_first_token(request, lane, now)
        for request, end in brought.ended:
            self._end(request, end)

    # Steps

    def step(self, now: float) -> list[tuple[str, StepPlan]]:
        """The next plan of every lane that is free to take one and has something to do."""
        if self._num_unsettled_steps == MOST_UNSETTLED_STEPS:
            self.settle()
        self._num_unsettled_steps += 1
        self._expire(now)
        if all(lane.is_leaving for lane in self.lanes.values()):
            self._last_without_takers = now
        self._recover(self.moves.advance(now), Loss.BLOCKS, now)
        drafts = self._draft(now)
        self._receive(drafts, now)
        may_move = self.moves.may_move(now)
        self._admit(drafts, may_move, now)
        if len(self.lanes) > 1:
            self._rebalance(may_move, now)
        return [(lane_id, plan) for lane_id, draft in drafts.items() if (plan := draft.finish(now))]

    def settle(self) -> None:
        """Bookkeeping that can wait until the plans are on their way; `step` does it when nobody else has."""
        self._num_unsettled_steps = 0
        for lane in self.lanes.values():
            lane.settle()

    def check_integrity(self) -> list[str]:
        """Broken invariants, as sentences; empty when all hold."""
        violations = [violation for lane in self.lanes.values() for violation in lane.check_integrity()]
        places = Counter(request.key for request in self.waiting)
        places.update(request.key for lane in self.lanes.values() for request in lane.requests)
        places.update(move.request.key for move in self.moves if move.has_left)
        violations += self.moves.check_integrity(list(self.lanes.values()))
        for key in self.requests.keys() | places.keys():
            if places[key] != 1 or key not in self.requests:
                known = "unfinished" if key in self.requests else "unknown"
                violations.append(f"request {key} is {known} and stands in {places[key]} places")
        return violations

    def _draft(self, now: float) -> dict[str, Draft]:
        """Running requests take their share first, and those without a block go back to the queue."""
        drafts: dict[str, Draft] = {}
        for lane_id, lane in self.lanes.items():
            if lane.can_plan and (draft := Draft.begin(lane, self.options.inter_token_target_s)):
                drafts[lane_id] = draft
                for request in draft.preempted:
                    if request.move:
                        self.moves.cancel(request.move, Failure.PREEMPTED, now)
                    self._queue(request, now)
                    self.counters.preemptions += 1
                for arrival in draft.turned_away:
                    if move := arrival.request.move:
                        self._recover(self.moves.cancel(move, Failure.NO_ROOM, now), Loss.BLOCKS, now)
        return drafts

    def _receive(self, drafts: dict[str, Draft], now: float) -> None:
        """Requests that have come from other lanes start, before those that wait."""
        for move in self.moves.arrived():
            draft = drafts.get(move.arrival.target.id)
            if draft and draft.budget:
                draft.receive(move.arrival)
                draft.lane.rows.client_slots[move.request.row] = self.waiting.slot(move.request)
                self.moves.finish(move, now)

    def _rebalance(self, may_move: MayMove, now: float) -> None:
        for request, target in proposals(list(self.lanes.values()), may_move, self.options.blocks_ahead):
            self.moves.begin(request, target, now)

    def _admit(self, drafts: dict[str, Draft], may_move: MayMove, now: float) -> None:
        """Waiting requests take what is left, in order, up to the first that fits nowhere."""
        if not drafts or not self.waiting:
            return
        candidates = [
            Candidate(lane, drafts.get(lane_id), self.options.blocks_ahead) for lane_id, lane in self.lanes.items()
        ]
        detour = self.moves.links.detour(now)
        placement = Placement(candidates, may_move, detour, self.options.max_local_prefill_tokens)
        for request in self.waiting:
            offer = placement.choose(request)
            if offer is None:
                break
            offer.reserve(request)
            # What is worth waiting for is there in the next step, or in one soon after.
            if draft := offer.draft:
                self.waiting.admit(request, offer.num_uncached_tokens)
                draft.admit(request, offer.prefix)
                draft.lane.rows.client_slots[request.row] = self.waiting.slot(request)
                self._note_admission(request, draft.lane, offer.prefix.num_tokens, now)
                if offer.target:
                    self.moves.begin(request, offer.target.lane, now)
                    self.counters.remote_prefills += 1
                else:
                    self.counters.local_prefills += 1

    def _note_admission(self, request: Request, lane: Lane, num_cached: int, now: float) -> None:
        if request.diary:
            request.diary.enter("prefill", now, executor=lane.name, cached_tokens=num_cached)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(num_cached, request.num_prompt_tokens)
            self.counters.prompt_tokens += request.num_prompt_tokens
            self.counters.prefix_cache_queries += request.num_prompt_tokens
            self.counters.prefix_cache_hits += request.num_cached_tokens
            self._outputs.admitted.append(request)

    def _note_first_token(self, request: Request, lane: Lane, now: float) -> None:
        """The first one that the request got on `lane`."""
        if request.lost_at is not None:
            loss = Loss.EXECUTORS if self._last_without_takers >= request.lost_at else request.loss
            self.counters.recovery_times[loss].add(now - request.lost_at)
            request.lost_at = None
        if request.diary:
            request.diary.end("recovery", now)
            request.diary.enter("decode", now, executor=lane.name)

    def _check(self, request: Request) -> None:
        if self._refusal:
            raise self._refusal
        check_parameters(request)
        if self.model:
            check_fits(request, self.model)
        # Who brings tokens along was accepted before, by a scheduler that is gone.
        if request.num_output_tokens == 0 and self.waiting.refuses(request):
            raise ResourceExhaustedError(
                f"the queue is full: {len(self.waiting)} requests are waiting, and max_num_waiting is "
                f"{self.options.max_num_waiting}; try again later",
                reason="QUEUE_FULL",
            )

    def _serve(self, spec: LaneSpec) -> None:
        """The first executor came, or the first after all had left: the waiting requests meet its model."""
        model = spec.model
        previous, self.model, self._block_size = self.model, model, spec.block_size
        for request in list(self.waiting):
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
        if self.options.enable_prefix_caching:
            request.begin_hashes(self._block_size)
        # A request that was handed over may have all its tokens.
        if end := request.end_after(request.token_ids[-1], request.num_tokens):
            self._end(request, end)

    def _watch(self, request: Request, deadline: float) -> None:
        heapq.heappush(self._deadlines, (deadline, request.arrival, request))
        if len(self._deadlines) > 2 * len(self.requests) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].end is None]
            heapq.heapify(self._deadlines)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            if request.end is None:
                message = f"the request was not done within its time limit of {request.timeout_s:g} s"
                self.counters.requests_expired += 1
                self._end_with_error(request, DeadlineExceededError(message))
        if not self.lanes:
            self._expire_without_lanes(now)

    def _expire_without_lanes(self, now: float) -> None:
        timeout_s = self.options.no_executor_timeout_s
        for request in list(self.waiting):
            if max(self._without_lanes_since, request.arrived_at) + timeout_s <= now:
                message = f"no executor joined within {timeout_s:g} s; try again later"
                self._end_with_error(request, UnavailableError(message, reason="NO_EXECUTOR"))

    def _queue(self, request: Request, now: float) -> None:
        self.waiting.add(request)
        if request.diary:
            request.diary.enter("queued", now)

    def _recover(self, requests: list[Request], loss: Loss, now: float) -> None:
        """They have no row any more, and are computed again."""
        for request in requests:
            self._queue(request, now)
            self.counters.recoveries += 1
            if request.lost_at is None:
                request.lost_at, request.loss = now, loss
            elif loss is Loss.EXECUTOR:
                request.loss = Loss.EXECUTORS
            if request.diary:
                request.diary.begin("recovery", now)

    def _end_with_error(self, request: Request, error: PagodaError) -> None:
        self._end(request, End(FinishReason.ERROR, error=error))

    def _end(self, request: Request, end: End) -> None:
        assert request.end is None
        request.end = end
        del self.requests[request.key]
        if request.lane is not None:
            request.lane.leave(request.row)
        elif request.move is None:
            self.waiting.remove(request)
        if request.move:
            self.moves.note_ended(request.move)
        self.waiting.finish(request)
        if end.reason is FinishReason.ABORT:
            self.counters.requests_aborted += 1
        else:
            self.counters.requests_finished += 1
        self._outputs.ended.append(request)


def _runs(lane: Lane, brought: Commit) -> list[TokenRun]:
    keys = lane.rows.key_numbers[brought.rows]
    origins = lane.rows.origins[brought.rows]
    if len(lane.origins) == 1:
        return [TokenRun(lane.origins.names[origins[0]], keys, brought.token_ids)]
    return [
        TokenRun(lane.origins.names[origin], keys[which], brought.token_ids[which])
        for origin in np.unique(origins)
        if len(which := np.flatnonzero(origins == origin))
    ]
