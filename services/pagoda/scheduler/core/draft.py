"""A step of one lane in the making: whom the token budget goes to.

There are no phases: every row gets min(uncomputed tokens, budget left). Rows that need one token come first, so that
a long prompt delays nobody's next token by more than one budget; then prompts under way; then waiting requests.
"""

from __future__ import annotations

from array import array

from pagoda.scheduler.core.lane import Flight, Lane, Prefix, Row
from pagoda.scheduler.core.plan import RowStart, StepPlan
from pagoda.scheduler.core.request import Request


class Draft:
    """The next plan of `lane`, until `finish`."""

    def __init__(self, lane: Lane, now: float) -> None:
        self.lane = lane
        self.budget = lane.spec.max_num_batched_tokens
        self.preempted: list[Request] = []
        self._plan = StepPlan(step=lane.last_planned_step + 1)
        self._flight = Flight(step=self._plan.step, sent_at=now)

    @classmethod
    def begin(cls, lane: Lane, now: float) -> Draft | None:
        """Gives the running rows their tokens. None: the lane must wait for a step in flight first."""
        rows = [(row, row.num_uncomputed_tokens) for row in lane.running]
        if lane.flights and _num_lacking_blocks(lane, rows) > lane.pool.num_available:
            return None  # Preempting would free nothing: blocks are held until the steps in flight have come back.
        draft = cls(lane, now)
        prompts = []
        for row, num_uncomputed in rows:
            if num_uncomputed > 1:
                prompts.append((row, num_uncomputed))
            elif num_uncomputed == 1 and row.request.row is row and draft._extend(row):
                draft._run(row, 1)
        for row, num_uncomputed in prompts:
            if draft.budget > 0 and row.request.row is row:
                draft._run(row, min(num_uncomputed, draft.budget))
        return draft

    def admit(self, request: Request, prefix: Prefix) -> None:
        """Starts `request`, for which there is room, with what is left of the budget."""
        row = self.lane.start(request, prefix)
        self._plan.started_rows.append(
            RowStart(
                row=row.index,
                token_ids=array("I", request.token_ids),
                num_computed_tokens=row.num_computed_tokens,
                block_ids=tuple(row.block_ids),
                sampling=request.sampling,
            )
        )
        self._run(row, min(row.num_uncomputed_tokens, self.budget))

    def finish(self) -> StepPlan | None:
        """The plan, which is now in flight. None when there is nothing to run."""
        if not self._plan.rows:
            return None
        lane = self.lane
        self._plan.ended_rows.extend(lane.ended_rows)
        lane.ended_rows.clear()
        lane.last_planned_step = self._plan.step
        lane.flights.append(self._flight)
        return self._plan

    def _extend(self, row: Row) -> bool:
        """Makes sure that the row's next token has a block, by preempting others if need be. False: it was `row`'s turn
        to make room."""
        lane = self.lane
        if row.num_computed_tokens < len(row.block_ids) * lane.spec.block_size:
            return True
        while (allocated := lane.pool.allocate(1)) is None:
            victim = lane.running[-1]
            lane.leave(victim)
            self.preempted.append(victim.request)
            if victim is row:
                return False
        row.block_ids += allocated
        self._plan.block_rows.append(row.index)
        self._plan.block_ids.extend(allocated)
        return True

    def _run(self, row: Row, num_new: int) -> None:
        row.num_computed_tokens += num_new
        row.last_step = self._plan.step
        self.budget -= num_new
        self._plan.rows.append(row.index)
        self._plan.num_new_tokens.append(num_new)
        self._flight.rows.append(row)
        self._flight.num_computed_tokens.append(row.num_computed_tokens)
        if row.num_computed_tokens == row.num_known_tokens:
            row.num_sampling += 1
            self._flight.sampling[row.index] = row


def _num_lacking_blocks(lane: Lane, rows: list[tuple[Row, int]]) -> int:
    block_size = lane.spec.block_size
    return sum(n == 1 and row.num_computed_tokens == len(row.block_ids) * block_size for row, n in rows)
