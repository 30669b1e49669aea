"""A step of one lane in the making: whom the token budget goes to.

There are no phases: every row gets min(uncomputed tokens, budget left). Rows that need one token come first, so that
a long prompt delays nobody's next token by more than one budget; then prompts under way; then waiting requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pagoda.scheduler.core.lane import Arrival, Flight, Lane, Prefix
from pagoda.scheduler.core.plan import NO_COPIES, BlockCopies, RowStart, StepPlan
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.core.rows import Indices

# However short steps must be, and when nothing is known of them yet, prompts go on by this many tokens. With fewer, the
# time goes into reading the weights.
LEAST_CHUNK = 64


class Draft:
    """The next plan of `lane`, until `finish`."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.preempted: list[Request] = []
        self.turned_away: list[Arrival] = []
        """Requests on their way here, for which there is no room any more."""
        self._started_rows: list[RowStart] = []
        # (row, position, block), and (row, number of tokens).
        self._block_changes: list[tuple[int, int, int]] = []
        self._chunks: list[tuple[int, int]] = []

    @classmethod
    def begin(cls, lane: Lane, inter_token_target_s: float = 0.0) -> Draft | None:
        """Gives the running rows their tokens. None: the lane must wait for a step in flight first.

        inter_token_target_s: prompts get no more tokens than let the step last so long; 0 = no target. Not only beside
            rows that decode: whose prompt ends within a step waits for the rest of it, and so does who comes meanwhile
        """
        rows = lane.rows
        lacking = np.flatnonzero(rows.decoding & (rows.num_computed == rows.num_slots))
        if len(lacking) > lane.pool.num_available:
            lane.free_departed()
        if len(lacking) > lane.pool.num_available and lane.flights:
            return None  # Preempting would free nothing: blocks are held until the steps in flight have come back.
        draft = cls(lane)
        if len(lacking):
            draft._extend(lacking)
        draft._decode()
        draft._limit(inter_token_target_s)
        draft._continue_prompts()
        return draft

    def admit(self, request: Request, prefix: Prefix) -> None:
        """Starts `request`, for which there is room, with what is left of the budget."""
        self._start(request, self.lane.start(request, prefix))

    def receive(self, arrival: Arrival) -> None:
        """Starts a request that has come from another lane; the budget must not be used up."""
        self._start(arrival.request, self.lane.receive(arrival))

    def finish(self, now: float) -> StepPlan | None:
        """The plan, which is now in flight. None when there is nothing to run."""
        if not (self._num_rows or self.lane.has_orders):
            return None
        lane, rows = self.lane, self.lane.rows
        block_rows, block_positions, block_ids = _columns(lane.block_changes + self._block_changes, 3)
        chunk_rows, chunk_num_tokens = _columns(self._chunks, 2)
        plan = StepPlan(
            step=lane.last_planned_step + 1,
            withdrawn=lane.withdrawn,
            grants=lane.grants,
            ended_rows=lane.ended_rows,
            pushes=lane.pushes,
            offloads=_copies(lane.offloads),
            copies=_copies(lane.copies),
            loads=_copies(lane.loads),
            started_rows=self._started_rows,
            block_rows=block_rows,
            block_positions=block_positions,
            block_ids=block_ids,
            chunk_rows=chunk_rows,
            chunk_num_tokens=chunk_num_tokens,
        )
        lane.begin_next_plan()
        # Rows that decode now run by themselves in the next step, unless this one brings their last token.
        for row in np.flatnonzero(rows.decoding & (rows.num_known >= rows.limit)).tolist():
            lane.retire(row)
        lane.last_planned_step = plan.step
        lane.flights.append(
            Flight(
                step=plan.step,
                sent_at=now,
                rows=np.flatnonzero(self._sampling),
                num_rows=self._num_rows,
                num_decoding=self._num_rows - len(self._chunks),
                num_tokens=self._num_tokens,
                first_rows=self._first_rows,
            )
        )
        return plan

    def _extend(self, lacking: Indices) -> None:
        """A block for each of the rows. If need be, requests on their way here are turned away, and then rows are
        preempted, these or others."""
        lane, rows = self.lane, self.lane.rows
        while len(lacking) > lane.pool.num_available and lane.arriving:
            arrival = next(reversed(lane.arriving.values()))
            lane.withdraw(arrival)
            self.turned_away.append(arrival)
        if len(lacking) > lane.pool.num_available:
            victims = sorted(lane.requests, key=lane.rank)
            while len(lacking) > lane.pool.num_available:
                victim = victims.pop()
                lane.leave(victim.row, preempted=True)
                if victim.move:
                    lane.take_back(victim.move.arrival)
                lane.free_departed()
                self.preempted.append(victim)
                lacking = lacking[rows.live[lacking]]
        allocated = lane.allocate(len(lacking))
        assert allocated is not None
        positions = (rows.num_slots[lacking] // lane.spec.block_size).tolist()
        self._block_changes = list(zip(lacking.tolist(), positions, allocated, strict=True))
        for row, _, block_id in self._block_changes:
            rows.block_ids[row].append(block_id)
        rows.num_slots[lacking] += lane.spec.block_size

    def _start(self, request: Request, row: int) -> None:
        rows = self.lane.rows
        self._started_rows.append(
            RowStart(
                row=row,
                token_ids=request.token_ids[:],
                num_computed_tokens=int(rows.num_computed[row]),
                block_ids=tuple(rows.block_ids[row]),
                sampling=request.sampling,
            )
        )
        if not self._run(row):
            self.lane.insert_prompt(row)

    def _decode(self) -> None:
        """Every row with one token left runs it and samples."""
        rows = self.lane.rows
        self._sampling = rows.decoding.copy()
        # Those that have left meanwhile do not decode.
        self._first_rows = [row for row in self.lane.nearly_computed if self._sampling[row]]
        self.lane.nearly_computed.clear()
        self._num_rows = self._num_tokens = int(np.count_nonzero(self._sampling))
        rows.num_computed += self._sampling
        rows.num_known += self._sampling

    def _limit(self, inter_token_target_s: float) -> None:
        lane = self.lane
        self.budget = lane.spec.max_num_batched_tokens - self._num_tokens
        if inter_token_target_s:
            least = min(LEAST_CHUNK, self.budget)
            self.budget = lane.step_time.chunk_budget(inter_token_target_s, most=self.budget, least=least)

    def _continue_prompts(self) -> None:
        lane = self.lane
        if lane.prompts:
            lane.prompts = [row for row in lane.prompts if not self._run(row)]

    def _run(self, row: int) -> bool:
        """Computes what the budget allows of a row with tokens left. True: at most one is left for the next step."""
        rows = self.lane.rows
        num_uncomputed = self.lane.num_uncomputed_tokens(row)
        num_new = min(num_uncomputed, self.budget)
        if not num_new:
            return False
        self.budget -= num_new
        self._num_rows += 1
        self._num_tokens += num_new
        if num_uncomputed > 1:
            self._chunks.append((row, num_new))
            self.lane.note_new_blocks(row)
        rows.num_computed[row] += num_new
        if num_new == num_uncomputed:
            self._sampling[row] = True
            self._first_rows.append(row)
            rows.num_known[row] += 1
        elif num_new == num_uncomputed - 1:
            self.lane.nearly_computed.append(row)
        rows.decoding[row] = num_uncomputed - num_new <= 1
        return num_uncomputed - num_new <= 1


def _columns(records: Sequence[tuple[int, ...]], count: int) -> Sequence[Sequence[int]]:
    return list(zip(*records, strict=True)) if records else ((),) * count


def _copies(copies: list[tuple[int, int]]) -> BlockCopies:
    return BlockCopies(*_columns(copies, 2)) if copies else NO_COPIES
