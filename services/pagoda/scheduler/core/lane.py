"""One executor as the scheduler sees it: its rows, its blocks, and the steps it was sent and has not answered.

Steps are executed in order: what a step in flight computes is there for every later one. A row of a request that
ended keeps its index and its blocks until the steps that were in flight at its end have come back.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from pagoda.errors import InvalidArgumentError
from pagoda.scheduler.core.blocks import BlockPool, Tail
from pagoda.scheduler.core.counters import Counters
from pagoda.scheduler.core.host import HostBlocks
from pagoda.scheduler.core.kv_events import LaneKvEvents
from pagoda.scheduler.core.plan import Grant, Push, StepResult
from pagoda.scheduler.core.request import End, Request
from pagoda.scheduler.core.rows import Indices, Rows, TokenIds
from pagoda.scheduler.core.slots import Slots
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec
from pagoda.scheduler.core.step_time import StepTimes

Rank = Callable[[Request], tuple[float, ...]]

# Steps shorter than this are sent one ahead, where the depth is chosen by measurement: planning and transport take up
# to a millisecond, and a request that arrives waits at most this much longer.
SHORT_STEP_NS = 20_000_000
# Weight of the newest step in the average that the choice is made by.
_STEP_WEIGHT = 0.1
# One block in so many, at most, is evicted before it is needed.
_MOST_EARLY = 32
# Steps that are kept for people to look at.
_NUM_RECENT_STEPS = 256


class BadResultError(InvalidArgumentError):
    """An executor answered something that does not answer its plan."""

    reason = "BAD_RESULT"


class Prefix(NamedTuple):
    """The beginning of a request, as far as its keys and values need not be computed on a lane."""

    blocks: Sequence[int | None]
    """Full blocks in order; None is one in host memory."""
    shared: list[int]
    """Those that are in the cache."""
    tail: Tail | None
    """What follows them, to be copied."""
    num_tokens: int
    num_expected_tokens: int
    """Tokens right behind it that another row is computing."""


NO_PREFIX = Prefix([], [], None, 0, 0)


class StepRecord(NamedTuple):
    """One step that has come back."""

    forward_ns: int
    turnaround_ns: int
    """From the plan, or from the result before if that came later, to the result, without the forward pass."""
    num_rows: int
    num_tokens: int


class Departed(NamedTuple):
    """A request that has left its row: what is to be done with its blocks."""

    request: Request
    row: int
    block_ids: list[int]
    num_remembered_blocks: int
    num_computed: int
    is_preempted: bool


@dataclass(slots=True)
class Arrival:
    """A row and blocks of a lane, kept for a request that comes from another."""

    number: int
    request: Request
    source: Lane
    target: Lane
    shared: list[int]
    """Blocks that hold the beginning of the request already."""
    granted: list[int]
    """Those behind them, which the source writes to."""
    granted_by: int
    """The step whose plan tells the executor."""

    @property
    def num_blocks(self) -> int:
        return len(self.shared) + len(self.granted)

    @property
    def is_granted(self) -> bool:
        """The executor knows, so that pushes may come."""
        return self.target.num_completed_steps >= self.granted_by


@dataclass(slots=True)
class Flight:
    """A step that was planned and has not come back."""

    step: int
    sent_at: float
    rows: Indices
    """Those that sample, ascending."""
    num_rows: int
    num_decoding: int
    num_tokens: int
    first_rows: list[int]
    """Of those that sample, the ones that do so for the first time."""
    departed: list[Departed] = field(default_factory=list)
    """Their rows and blocks are free when it comes back, and so are these blocks."""
    replaced_blocks: list[int] = field(default_factory=list)


class Commit(NamedTuple):
    """What a step brought. rows, token_ids: parallel; the requests that go on, and those that end by their token.

    first: those that have got the first token of their rows
    """

    rows: Indices
    token_ids: TokenIds
    ended: list[tuple[Request, End]]
    first: list[Request]


class Lane:
    """State of one executor. `Draft` plans its steps; this class applies what comes back."""

    def __init__(
        self,
        lane_id: str,
        spec: LaneSpec,
        rank: Rank,
        counters: Counters,
        *,
        enable_prefix_caching: bool = True,
        max_plans_in_flight: int = 1,
        kv_events: LaneKvEvents | None = None,
    ) -> None:
        """rank: of requests; the highest is preempted first
        max_plans_in_flight: 0 = two while steps are short, else one
        kv_events: is told which blocks can be found; None: nobody wants to know
        """
        self.id = lane_id
        self.spec = spec
        self.rank = rank
        self.role = spec.role
        """It may be changed while the lane runs."""
        self.is_leaving = False
        """It takes no more requests."""
        self.arriving: dict[int, Arrival] = {}
        """Requests that come from other lanes, by their numbers."""
        self.lent: dict[int, list[int]] = {}
        """Blocks that other lanes read, by the numbers of those requests; they stay as they are until `take_back`."""
        self.pool = BlockPool(spec.num_blocks, enable_prefix_caching=enable_prefix_caching)
        self.host = HostBlocks(spec.num_host_blocks) if spec.num_host_blocks else None
        self.rows = Rows(spec.max_num_seqs, spec.block_size)
        self.prompts: list[int] = []
        """Rows with more than one token left to compute, lowest rank first."""
        self.nearly_computed: list[int] = []
        """Rows that sample their first token in the next step, if they are there then: no other had their places."""
        self.flights: deque[Flight] = deque()
        self.last_planned_step = 0
        self.last_forward_ns = 0
        self.recent_steps: deque[StepRecord] = deque(maxlen=_NUM_RECENT_STEPS)
        self.step_time = StepTimes()
        self.origins = Slots()

        # For the next plan.
        self.withdrawn: list[int] = []
        self.grants: list[Grant] = []
        self.pushes: list[Push] = []
        self.ended_rows: list[int] = []
        self.block_changes: list[tuple[int, int, int]] = []
        """(row, position, block)."""
        # (source, target).
        self.offloads: list[tuple[int, int]] = []
        self.copies: list[tuple[int, int]] = []
        self.loads: list[tuple[int, int]] = []

        self._kv_events = kv_events
        self._counters = counters
        self._enable_prefix_caching = enable_prefix_caching
        self._max_plans_in_flight = max_plans_in_flight
        self._mean_forward_ns = float(SHORT_STEP_NS)
        self._last_result_at = 0.0
        # Smallest first, which keeps the rows in use together.
        self._free_rows = list(range(spec.max_num_seqs))
        # Rows that have all the tokens they get here once the steps in flight are back; the next plan ends them.
        self._retired: set[int] = set()
        # What waits for `settle`: requests whose blocks nobody writes to any more, and rows with new full blocks.
        self._departed: list[Departed] = []
        self._unsettled: list[int] = []
        # Blocks since then.
        self._num_allocated = 0
        # How many reasons there are to look at a row that sampled a token; most tokens stop nobody.
        self._num_stopped_by = np.zeros(spec.model.vocab_size, np.uint32)
        self._num_stopped_by[sorted(spec.model.eos_token_ids)] = 1

    @property
    def max_plans_in_flight(self) -> int:
        if self._max_plans_in_flight:
            return self._max_plans_in_flight
        return 2 if self._mean_forward_ns < SHORT_STEP_NS else 1

    @property
    def can_plan(self) -> bool:
        return len(self.flights) < self.max_plans_in_flight

    @property
    def name(self) -> str:
        """For people."""
        return self.spec.name or self.id

    @property
    def num_completed_steps(self) -> int:
        return self.flights[0].step - 1 if self.flights else self.last_planned_step

    @property
    def num_free_rows(self) -> int:
        """Those that are not kept for requests on their way."""
        return len(self._free_rows) - len(self.arriving)

    @property
    def may_decode(self) -> bool:
        """Requests may stay when their prompts are computed."""
        return self.role is not ExecutorRole.PREFILL and not self.is_leaving

    @property
    def has_orders(self) -> bool:
        """The next plan has something to say even if no row runs."""
        return bool(self.withdrawn or self.grants or self.pushes)

    @property
    def num_running(self) -> int:
        return int(np.count_nonzero(self.rows.live))

    @property
    def num_decoding(self) -> int:
        return int(np.count_nonzero(self.rows.decoding))

    @property
    def num_prefilling(self) -> int:
        return len(self.prompts)

    @property
    def num_queued_tokens(self) -> int:
        """What it is computing, and what is left to compute of its rows."""
        num_left = self.num_decoding + sum(self.num_uncomputed_tokens(row) for row in self.prompts)
        return num_left + sum(flight.num_tokens for flight in self.flights)

    @property
    def requests(self) -> list[Request]:
        """Those that run here."""
        return [request for request in self.rows.requests if request is not None]

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.spec.block_size)

    def num_blocks_to_move(self, num_tokens: int) -> int:
        """It goes on for a while before it leaves its row."""
        return self.num_blocks_for(min(num_tokens + self.spec.block_size, self.spec.model.max_model_len))

    def num_tokens(self, row: int) -> int:
        """Those that are known."""
        return int(self.rows.num_tokens[row])

    def num_uncomputed_tokens(self, row: int) -> int:
        return int(self.rows.num_known[row]) - int(self.rows.num_computed[row])

    # Requests come and go

    def find_prefix(self, request: Request) -> Prefix:
        """The beginning of `request` that this lane has computed already."""
        if not self._enable_prefix_caching:
            return NO_PREFIX
        # The last token is computed again in any case, so that the next one can be sampled.
        last = len(request.token_ids) - 1
        block_size, chain = self.spec.block_size, request.hashes.chain
        shared = self.pool.find_chain(chain, last // block_size)
        blocks: Sequence[int | None] = shared
        if self.host is not None and len(shared) < last // block_size:
            blocks = self._find_in_host_too(chain[: last // block_size], shared)
        num_full = len(blocks)
        num_tokens = num_full * block_size
        num_expected = self.pool.count_expected(chain, num_full) * block_size
        tail = None
        if num_tokens < last:
            tail = self._find_tail(request, num_full, num_tokens, min(num_tokens + block_size, last))
            if tail:
                num_expected = max(0, num_expected - len(tail.token_ids))
                num_tokens += len(tail.token_ids)
        return Prefix(blocks, shared, tail, num_tokens, num_expected)

    def start(self, request: Request, prefix: Prefix) -> int:
        """Gives `request` a row, and blocks for all of its tokens; there must be as many. Returns the row."""
        chain, num_full = request.hashes.chain, len(prefix.blocks)
        shared = prefix.shared
        slots: dict[int, int] = {}
        if self.host is not None and len(shared) < num_full:
            missing = [position for position, block_id in enumerate(prefix.blocks) if block_id is None]
            slots = {position: self.host.read(chain[position]) for position in missing}
        self.pool.share(shared)
        allocated = self.allocate(self.num_blocks_for(len(request.token_ids)) - len(shared))
        assert allocated is not None
        if slots:
            fresh = iter(allocated)
            table = [next(fresh) if block_id is None else block_id for block_id in prefix.blocks]
            table.extend(fresh)
            # They can be found in the next step: a copy made in this one would come before the load.
            num_remembered = min(slots)
            self.loads += [(slot, table[position]) for position, slot in slots.items()]
            self._counters.loaded_blocks += len(slots)
        else:
            num_remembered = num_full
            table = shared + allocated
        if prefix.tail:
            self.copies.append((prefix.tail.block_id, table[num_full]))
            self._counters.copied_blocks += 1
        return self._seat(request, table, prefix.num_tokens, num_remembered)

    def has_room_for(self, num_tokens: int, blocks_ahead: int) -> bool:
        """Whether a request of so many tokens could move here. blocks_ahead: that stay free for each that runs"""
        num_kept = blocks_ahead * (self.num_running + len(self.arriving))
        num_blocks = self.num_blocks_to_move(num_tokens) + num_kept
        return self.num_free_rows > 0 and self.can_allocate(num_blocks)

    def reserve(self, number: int, request: Request, source: Lane) -> Arrival:
        """Room for a request of `source`, and for a little more than its tokens; there must be as much."""
        if self._enable_prefix_caching:
            request.hashes.extend(request.token_ids)
        shared = self.pool.find_chain(request.hashes.chain, (len(request.token_ids) - 1) // self.spec.block_size)
        self.pool.share(shared)
        granted = self.allocate(self.num_blocks_to_move(len(request.token_ids)) - len(shared))
        assert granted is not None
        arrival = Arrival(number, request, source, self, shared, granted, self.last_planned_step + 1)
        self.arriving[number] = arrival
        self.grants.append(Grant(number, granted))
        return arrival

    def withdraw(self, arrival: Arrival) -> None:
        """The request does not come. Nothing happens if that is known."""
        if self.arriving.pop(arrival.number, None):
            self._end_grant(arrival)
            self.pool.release(arrival.shared + arrival.granted)

    def receive(self, arrival: Arrival) -> int:
        """The request has come, and so have the keys and values of all its tokens but the last. Returns its row."""
        del self.arriving[arrival.number]
        self._end_grant(arrival)
        request, table = arrival.request, arrival.shared + arrival.granted
        num_blocks = self.num_blocks_for(len(request.token_ids))
        self.pool.release(table[num_blocks:])
        return self._seat(request, table[:num_blocks], len(request.token_ids) - 1, len(arrival.shared))

    def lend(self, arrival: Arrival, first_position: int, block_ids: list[int]) -> None:
        """The next plan pushes blocks of a request that goes from here; the first is granted[first_position]."""
        self.pool.share(block_ids)
        self.lent.setdefault(arrival.number, []).extend(block_ids)
        self.pushes.append(Push(arrival.number, arrival.target.id, first_position, block_ids))

    def take_back(self, arrival: Arrival) -> None:
        """Whoever still reads the blocks does so in vain. Nothing happens if none are lent."""
        self.pool.release(self.lent.pop(arrival.number, []))

    def can_allocate(self, count: int) -> bool:
        """Frees the blocks of those who have left if need be."""
        return count <= self.pool.num_available or (self.free_departed() and count <= self.pool.num_available)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks; what they held goes to host memory, where there is one for it."""
        block_ids = self.pool.allocate(count)
        self._num_allocated += count
        self._settle_evicted()
        return block_ids

    def insert_prompt(self, row: int) -> None:
        """The row has more than one token left to compute."""
        insort(self.prompts, row, key=self._rank_of_row)

    def retire(self, row: int) -> None:
        """The row does not run again; it still gets the tokens of the steps in flight and of the one in the making."""
        self.rows.decoding[row] = False
        self._retired.add(row)
        self._end_row(row)

    def leave(self, row: int, *, preempted: bool = False) -> None:
        """The row's request ended or must make room; it gets its tokens. `free_departed` does the rest."""
        rows = self.rows
        request = rows.requests[row]
        assert request is not None
        rows.flush(row)
        rows.live[row] = rows.decoding[row] = False
        rows.requests[row] = None
        request.lane, request.row = None, -1
        if row in self._retired:
            self._retired.remove(row)
        else:
            self._end_row(row)
        if row in self.prompts:
            self.prompts.remove(row)
        self.pool.unexpect(request.hashes.chain[rows.num_remembered_blocks[row] : rows.num_expected_blocks[row]], row)
        departed = Departed(
            request,
            row,
            rows.block_ids[row],
            rows.num_remembered_blocks[row],
            # A step in flight may compute a token that comes after the request's end.
            min(int(rows.num_computed[row]), len(request.token_ids)),
            preempted,
        )
        if self.flights:
            self.flights[-1].departed.append(departed)
        else:
            self._depart(departed)

    def begin_next_plan(self) -> None:
        """What was noted for a plan is in one now."""
        self.withdrawn, self.grants, self.pushes = [], [], []
        self.ended_rows, self.block_changes = [], []
        self.offloads, self.copies, self.loads = [], [], []
        if self.host is not None:
            self.host.unpin()

    def expose(self, row: int) -> None:
        """All that the row has computed can be found, to the last token: another request branches off."""
        request = self.rows.requests[row]
        assert request is not None
        if self._enable_prefix_caching:
            self.rows.flush(row)
            self._remember_new(row, request)
            num_computed = min(int(self.rows.num_computed[row]), len(request.token_ids))
            self._remember_tail(request, self.rows.block_ids[row], num_computed)

    # Steps come back

    def commit(self, result: StepResult, now: float) -> Commit:
        """Applies the oldest step in flight.

        Raises BadResultError, with nothing changed, when `result` is not that step's.
        """
        flight = self._check(result)
        self.flights.popleft()
        self._record(flight, result.forward_ns, now)
        rows, token_ids = flight.rows, result.token_ids
        live = self.rows.live[rows]
        if not live.all():
            rows, token_ids = rows[live], token_ids[live]
        ended = self._append(rows, token_ids) if len(rows) else []
        # A row of a request that has left is nobody's until this step is back.
        first = [request for row in flight.first_rows if (request := self.rows.requests[row])]
        for departed in flight.departed:
            self._depart(departed)
        if flight.replaced_blocks:
            self.pool.release(flight.replaced_blocks)
        return Commit(rows, token_ids, ended, first)

    def note_new_blocks(self, row: int) -> None:
        """`settle` will look at the row."""
        self._unsettled.append(row)

    def free_departed(self) -> bool:
        """Frees the blocks of requests that have left. False: there were none."""
        departed, self._departed = self._departed, []
        for each in departed:
            self._free(each)
        return bool(departed)

    def settle(self) -> None:
        """What can wait until the plans are on their way: what was computed can be found from now on."""
        self.free_departed()
        unsettled, self._unsettled = self._unsettled, []
        if self._enable_prefix_caching:
            for row in unsettled:
                if request := self.rows.requests[row]:
                    self._remember_new(row, request)
                    if self.rows.num_computed[row] >= len(request.token_ids):
                        self._remember_tail(request, self.rows.block_ids[row], len(request.token_ids))
        # The next plan will need about as many blocks, and shall not have to look for them.
        num_needed, self._num_allocated = self._num_allocated, 0
        self.pool.make_room(min(num_needed, self.spec.num_blocks // _MOST_EARLY))
        self._settle_evicted()

    def forget_row(self, row: int) -> Request:
        """The executor is gone: the row's request, with its tokens."""
        request = self.rows.requests[row]
        assert request is not None
        self.rows.flush(row)
        request.lane, request.row = None, -1
        return request

    def check_integrity(self) -> list[str]:
        """Broken invariants, as sentences."""
        rows, violations = self.rows, []
        free = set(self._free_rows)
        leaving = {each.row for flight in self.flights for each in flight.departed}
        departed = [*self._departed, *(each for flight in self.flights for each in flight.departed)]
        tables = {f"departed {each.request.key} of row {each.row}": each.block_ids for each in departed}
        tables |= {f"arrival {each.number}": each.shared + each.granted for each in self.arriving.values()}
        tables |= {f"move {number}": block_ids for number, block_ids in self.lent.items()}
        if len(self.arriving) > len(free):
            violations.append(f"{len(self.arriving)} requests are on their way to {len(free)} free rows")
        tables["steps in flight"] = [block_id for flight in self.flights for block_id in flight.replaced_blocks]
        for row, request in enumerate(rows.requests):
            name = f"row {row}" + (f" of request {request.request_id or request.key}" if request else "")
            if (row in free) + (row in leaving) + (request is not None) != 1:
                violations.append(f"{name} is not exactly one of free, leaving and running")
            if bool(rows.live[row]) != (request is not None):
                violations.append(f"{name} is{' not' if not rows.live[row] else ''} live")
            if request is None:
                if rows.decoding[row]:
                    violations.append(f"{name} decodes for nobody")
                continue
            tables[name] = rows.block_ids[row]
            violations += [f"{name} {problem}" for problem in self._check_row(row, request)]
        if len(free) != len(self._free_rows):
            violations.append("a row is free twice")
        violations += self.pool.check_integrity(tables)
        if self.host is not None:
            violations += self.host.check_integrity()
        if self._kv_events is not None:
            violations += self._kv_events.check_integrity(self.pool.hashes, self.host.hashes if self.host else ())
        return [f"{self.name}: {violation}" for violation in violations]

    def _check_row(self, row: int, request: Request) -> list[str]:
        rows, problems = self.rows, []
        num_tokens, num_known, num_computed, num_slots, limit = (
            int(each[row]) for each in (rows.num_tokens, rows.num_known, rows.num_computed, rows.num_slots, rows.limit)
        )
        if request.end is not None:
            problems.append("has ended and still runs")
        if (request.lane, request.row) != (self, row):
            problems.append("is not where its request is")
        if not (num_tokens <= num_known <= limit and num_computed < num_known and num_computed <= num_slots):
            problems.append(
                f"has {num_computed} computed, {num_tokens} known and {num_known} coming tokens of {limit}, "
                f"and {num_slots} slots"
            )
        if num_known - num_tokens != sum(row in flight.rows for flight in self.flights):
            problems.append("does not sample as often as steps in flight say")
        if num_slots != len(rows.block_ids[row]) * self.spec.block_size:
            problems.append(f"has {num_slots} slots in {len(rows.block_ids[row])} blocks")
        places = (bool(rows.decoding[row]), row in self.prompts, row in self._retired)
        expected = (num_known - num_computed == 1, num_known - num_computed > 1, False)
        if row in self._retired and (num_known == limit or (request.move and request.move.is_stopped)):
            expected = (False, False, True)
        if places != expected:
            left = num_known - num_computed
            problems.append(f"has {left} tokens to compute, but (decodes, prompt, retired) = {places}")
        return problems

    def _end_row(self, row: int) -> None:
        """The next plan says so, and no more of it."""
        self.ended_rows.append(row)
        if self.block_changes:
            self.block_changes = [change for change in self.block_changes if change[0] != row]

    def _end_grant(self, arrival: Arrival) -> None:
        """The next plan withdraws it, before it gives the blocks to others; or never grants it."""
        if self.last_planned_step < arrival.granted_by:
            self.grants = [grant for grant in self.grants if grant.number != arrival.number]
        else:
            self.withdrawn.append(arrival.number)

    def _seat(self, request: Request, table: list[int], num_computed: int, num_remembered: int) -> int:
        """Gives `request` a row. num_remembered: blocks of the table that can be found already"""
        rows, chain = self.rows, request.hashes.chain
        row = heappop(self._free_rows)
        rows.start(row, request, table, num_computed)
        rows.origins[row] = self.origins.hold(request.key.origin)
        rows.num_remembered_blocks[row] = rows.num_expected_blocks[row] = num_remembered
        if self._enable_prefix_caching and len(chain) > num_remembered:
            self.pool.expect(chain[num_remembered:], row)
            rows.num_expected_blocks[row] = len(chain)
            self.note_new_blocks(row)
        for token_id in request.sampling.stop_token_ids:
            self._num_stopped_by[token_id] += 1
        request.lane, request.row = self, row
        return row

    def _find_in_host_too(self, chain: Sequence[bytes], shared: list[int]) -> list[int | None]:
        """`shared` are the first blocks; those that follow are added to it, those in host memory are None."""
        assert self.host is not None
        blocks: list[int | None] = list(shared)
        for block_hash in chain[len(shared) :]:
            block_id = self.pool.find(block_hash)
            if block_id is not None:
                shared.append(block_id)
            elif block_hash not in self.host:
                break
            blocks.append(block_id)
        return blocks

    def _find_tail(self, request: Request, num_full: int, first: int, last: int) -> Tail | None:
        """A block to copy that begins with some of the tokens [first, last), behind the first `num_full` blocks."""
        chain = request.hashes.chain
        if num_full < len(chain) and (block_id := self.pool.find(chain[num_full])) is not None:
            return Tail(block_id, request.token_ids[first:last])
        parent = chain[num_full - 1] if num_full else request.hashes.root
        return self.pool.find_tail(parent, request.token_ids, first, last)

    def _check(self, result: StepResult) -> Flight:
        if not self.flights or self.flights[0].step != result.step:
            expected = self.flights[0].step if self.flights else "none"
            raise BadResultError(f"result of step {result.step}, expected {expected}")
        flight = self.flights[0]
        if len(result.rows) != len(result.token_ids):
            raise BadResultError(f"{len(result.rows)} rows and {len(result.token_ids)} tokens in step {result.step}")
        if len(result.rows) != len(flight.rows) or not (result.rows == flight.rows).all():
            raise BadResultError(f"step {result.step} sampled other rows than planned")
        if len(result.token_ids) and result.token_ids.max() >= self.spec.model.vocab_size:
            raise BadResultError(f"step {result.step} sampled a token outside the vocabulary")
        return flight

    def _record(self, flight: Flight, forward_ns: int, now: float) -> None:
        if not flight.num_rows:
            return  # Nothing but orders.
        self.last_forward_ns = forward_ns
        self._mean_forward_ns += _STEP_WEIGHT * (forward_ns - self._mean_forward_ns)
        # A step that was sent ahead began to wait for nothing but itself when the one before it came back.
        began_at = max(flight.sent_at, self._last_result_at)
        self._last_result_at = now
        turnaround_ns = max(0, int((now - began_at) * 1e9) - forward_ns)
        self.recent_steps.append(StepRecord(forward_ns, turnaround_ns, flight.num_rows, flight.num_tokens))
        self.step_time.observe(flight.num_tokens - flight.num_decoding, forward_ns / 1e9)

    def _append(self, rows: Indices, token_ids: TokenIds) -> list[tuple[Request, End]]:
        num_tokens, are_last, are_full = self.rows.append(rows, token_ids)
        if are_full.any():
            for row in rows[are_full].tolist():
                self.rows.flush(row)
                self._unsettled.append(row)
        suspects = are_last | (self._num_stopped_by[token_ids] > 0)
        ended: list[tuple[Request, End]] = []
        if suspects.any():
            for index in np.flatnonzero(suspects).tolist():
                request = self.rows.requests[rows[index]]
                assert request is not None
                if end := request.end_after(int(token_ids[index]), int(num_tokens[index])):
                    ended.append((request, end))
        return ended

    def _remember_new(self, row: int, request: Request) -> None:
        """What is full can be found from now on; where an equal can be found already, the row goes on with that."""
        rows = self.rows
        first, table = rows.num_remembered_blocks[row], rows.block_ids[row]
        num_full = min(int(rows.num_computed[row]), len(request.token_ids)) // self.spec.block_size
        if num_full > first:
            equals = self._remember(request, table, first, num_full)
            if row not in self._retired:
                for position, block_id in equals:
                    self._replace(row, position, block_id)
            self.pool.unexpect(request.hashes.chain[first : min(num_full, rows.num_expected_blocks[row])], row)
            rows.num_remembered_blocks[row] = num_full

    def _remember(self, request: Request, table: list[int], first: int, last: int) -> list[tuple[int, int]]:
        """Blocks [first, last) of a table can be found from now on, but for those returned: (position, block) of each
        whose equal can be found already."""
        request.hashes.extend(request.token_ids)
        chain, remember = request.hashes.chain, self.pool.remember
        equals: list[tuple[int, int]] = []
        untold = first
        for position in range(first, last):
            known = remember(table[position], chain[position])
            if known != table[position]:
                equals.append((position, known))
                self._tell_stored(request, untold, position)
                untold = position + 1
        self._tell_stored(request, untold, last)
        return equals

    def _tell_stored(self, request: Request, first: int, last: int) -> None:
        """Blocks [first, last) of a request can be found from now on."""
        if self._kv_events is not None and first < last:
            chain, block_size = request.hashes.chain, self.spec.block_size
            parent = chain[first - 1] if first else request.hashes.root
            tokens = request.token_ids[first * block_size : last * block_size]
            self._kv_events.stored(chain[first:last], parent, tokens)

    def _remember_tail(self, request: Request, table: list[int], num_computed: int) -> None:
        """The block behind the full ones can be copied from now on. num_computed: tokens, all of them known"""
        position, rest = divmod(num_computed, self.spec.block_size)
        if rest:
            parent = request.hashes.chain[position - 1] if position else request.hashes.root
            self.pool.remember_tail(table[position], parent, request.token_ids[num_computed - rest : num_computed])

    def _replace(self, row: int, position: int, block_id: int) -> None:
        table = self.rows.block_ids[row]
        self.pool.share([block_id])
        if self.flights:
            self.flights[-1].replaced_blocks.append(table[position])
        else:
            self.pool.release([table[position]])
        table[position] = block_id
        self.block_changes.append((row, position, block_id))
        self._counters.merged_blocks += 1

    def _offload(self, block_id: int, block_hash: bytes) -> None:
        assert self.host is not None
        if written := self.host.write(block_hash):
            slot, dropped = written
            if self._kv_events is not None:
                if dropped is not None:
                    self._kv_events.dropped(dropped)
                self._kv_events.offloaded(block_hash)
            self.offloads.append((block_id, slot))
            self._counters.offloaded_blocks += 1

    def _settle_evicted(self) -> None:
        """What the pool evicted goes to host memory, where there is one for it."""
        if evicted := self.pool.evicted:
            if self.host is not None and not self.spec.swap_only:
                for block_id, block_hash in evicted:
                    self._offload(block_id, block_hash)
            if self._kv_events is not None:
                self._kv_events.removed([block_hash for _, block_hash in evicted])
            evicted.clear()

    def _depart(self, departed: Departed) -> None:
        """No step in flight runs the row any more."""
        heappush(self._free_rows, departed.row)
        self._departed.append(departed)

    def _free(self, departed: Departed) -> None:
        """What was computed can be found, and nobody holds it."""
        request, table = departed.request, departed.block_ids
        if self._enable_prefix_caching:
            num_full = departed.num_computed // self.spec.block_size
            self._remember(request, table, departed.num_remembered_blocks, num_full)
            self._remember_tail(request, table, departed.num_computed)
            if departed.is_preempted and self.host is not None and self.spec.swap_only:
                for block_id, block_hash in zip(table[:num_full], request.hashes.chain, strict=False):
                    self._offload(block_id, block_hash)
        self.pool.release(table)
        self.origins.let_go(request.key.origin)
        for token_id in request.sampling.stop_token_ids:
            self._num_stopped_by[token_id] -= 1

    def _rank_of_row(self, row: int) -> tuple[float, ...]:
        request = self.rows.requests[row]
        assert request is not None
        return self.rank(request)
