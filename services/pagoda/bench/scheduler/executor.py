"""An executor without a model or a cache: it keeps count of its rows and says how long a step takes.

It applies plans as step.proto says, a handful of array operations per step, so that thousands of them can run side by
side. Its tokens are those that the trace foresees at their positions. What breaks the contract raises AssertionError,
as far as counts show it; wrong contents of blocks are for `pagoda.scheduler.core.simulated` to find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pagoda.bench.scheduler.cost import CostModel, StepWork
from pagoda.bench.scheduler.trace import tokens_at
from pagoda.scheduler.core.plan import BlockCopies, Grant, Push, RowStart, StepPlan, StepResult
from pagoda.scheduler.core.spec import LaneSpec


class CountingExecutor:
    """The batch of one executor. A row that is free has 0 tokens, all of them computed."""

    def __init__(self, spec: LaneSpec, cost: CostModel) -> None:
        self._spec = spec
        self._cost = cost
        self._last_step = 0
        size = spec.max_num_seqs
        self._taken: NDArray[np.bool_] = np.zeros(size, np.bool_)
        self._num_tokens: NDArray[np.int64] = np.zeros(size, np.int64)
        self._num_computed: NDArray[np.int64] = np.zeros(size, np.int64)
        self._num_blocks: NDArray[np.int64] = np.zeros(size, np.int64)
        self._streams: NDArray[np.uint64] = np.zeros(size, np.uint64)
        # By number: blocks that others may write to, and how many of them have come.
        self._granted: dict[int, list[int]] = {}
        self._num_arrived: dict[int, int] = {}
        self._is_granted: NDArray[np.bool_] = np.zeros(spec.num_blocks, np.bool_)

    def run(self, plan: StepPlan) -> tuple[StepResult, float]:
        """The result of a step, and its seconds."""
        assert plan.step == self._last_step + 1, f"step {plan.step} after {self._last_step}"
        self._last_step = plan.step
        self._withdraw(plan.withdrawn)
        self._grant(plan.grants)
        self._end(plan.ended_rows)
        self._check_pushed(plan.pushes)
        num_moved, num_copied = self._count_copies(plan)
        for start in plan.started_rows:
            self._start(start)
        self._set_blocks(plan)

        num_new = self._num_new_tokens(plan)
        rows = np.flatnonzero(num_new)
        num_new = num_new[rows]
        before = self._num_computed[rows]
        after = before + num_new
        assert (after <= self._num_blocks[rows] * self._spec.block_size).all(), "a row runs beyond its block table"
        self._num_computed[rows] = after
        work = StepWork(
            num_tokens=int(num_new.sum()),
            num_context_tokens=int(after.sum()),
            num_attention_pairs=int((num_new * before + num_new * (num_new + 1) // 2).sum()),
            num_moved_tokens=num_moved * self._spec.block_size,
            num_copied_tokens=num_copied * self._spec.block_size,
        )
        has_orders = plan.withdrawn or plan.grants or plan.pushes
        assert work.num_tokens > 0 or has_orders, "a plan runs at least one row, or has orders"
        assert work.num_tokens <= self._spec.max_num_batched_tokens, f"{work.num_tokens} tokens in one step"

        sampling = rows[after == self._num_tokens[rows]]
        token_ids = tokens_at(self._streams[sampling], self._num_tokens[sampling], self._spec.model.vocab_size)
        self._num_tokens[sampling] += 1
        seconds = self._cost.step_s(work)
        return StepResult(plan.step, sampling.astype(np.uint32), token_ids, forward_ns=round(seconds * 1e9)), seconds

    def receive(self, push: Push) -> int | None:
        """Blocks have come. How many of the grant's have so far; None: it is over, and they are dropped."""
        if push.number not in self._granted:
            return None
        num_arrived = self._num_arrived[push.number]
        assert push.first_position == num_arrived, "blocks come twice, or in another order"
        assert num_arrived + len(push.block_ids) <= len(self._granted[push.number]), "more blocks than were granted"
        self._num_arrived[push.number] += len(push.block_ids)
        return self._num_arrived[push.number]

    def _withdraw(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            assert number in self._granted, f"there is no grant {number}"
            self._is_granted[self._granted.pop(number)] = False
            del self._num_arrived[number]

    def _grant(self, grants: Sequence[Grant]) -> None:
        for grant in grants:
            assert grant.number not in self._granted, f"there is a grant {grant.number}"
            block_ids = list(grant.block_ids)
            assert not self._is_granted[block_ids].any(), "a block is granted twice"
            self._is_granted[block_ids] = True
            self._granted[grant.number] = block_ids
            self._num_arrived[grant.number] = 0

    def _check_pushed(self, pushes: Sequence[Push]) -> None:
        for push in pushes:
            assert 0 <= min(push.block_ids) <= max(push.block_ids) < self._spec.num_blocks, "a push from nowhere"

    def _end(self, ended_rows: Sequence[int]) -> None:
        if ended_rows:
            rows = np.array(ended_rows)
            assert self._taken[rows].all(), "a free row ends"
            self._taken[rows] = False
            self._num_tokens[rows] = self._num_computed[rows] = 0

    def _count_copies(self, plan: StepPlan) -> tuple[int, int]:
        """(blocks that move between cache and host memory, blocks copied within the cache)"""
        num_blocks, num_host_blocks = self._spec.num_blocks, self._spec.num_host_blocks
        num_offloaded = _count_copies(plan.offloads, num_blocks, num_host_blocks)
        num_copied = _count_copies(plan.copies, num_blocks, num_blocks)
        num_loaded = _count_copies(plan.loads, num_host_blocks, num_blocks)
        return num_offloaded + num_loaded, num_copied

    def _start(self, start: RowStart) -> None:
        row, num_tokens = start.row, len(start.token_ids)
        assert not self._taken[row], f"row {row} is taken"
        assert 0 <= start.num_computed_tokens < num_tokens
        assert len(set(start.block_ids)) == len(start.block_ids), "a block twice in one table"
        self._taken[row] = True
        self._num_tokens[row] = num_tokens
        self._num_computed[row] = start.num_computed_tokens
        self._num_blocks[row] = len(start.block_ids)
        self._streams[row] = start.sampling.seed

    def _set_blocks(self, plan: StepPlan) -> None:
        for row, position, block_id in zip(plan.block_rows, plan.block_positions, plan.block_ids, strict=True):
            num_blocks = self._num_blocks[row]
            assert self._taken[row], f"free row {row} gets a block"
            assert 0 <= position <= num_blocks, f"block table of row {row} gets a hole"
            assert 0 <= block_id < self._spec.num_blocks
            self._num_blocks[row] = max(num_blocks, position + 1)

    def _num_new_tokens(self, plan: StepPlan) -> NDArray[np.int64]:
        """[max_num_seqs] tokens each row computes in this step"""
        num_uncomputed = self._num_tokens - self._num_computed
        num_new: NDArray[np.int64] = (num_uncomputed == 1).astype(np.int64)
        if plan.chunk_rows:
            rows, num_chunk = np.array(plan.chunk_rows), np.array(plan.chunk_num_tokens)
            assert len(set(plan.chunk_rows)) == len(rows) == len(num_chunk), "chunks of one row, or of none"
            num_left = num_uncomputed[rows]
            assert (num_left > 1).all(), "a chunk of a row that has not more than one token left"
            assert ((num_chunk > 0) & (num_chunk <= num_left)).all(), "a chunk that is empty or too long"
            num_new[rows] = num_chunk
        return num_new


def _count_copies(copies: BlockCopies, num_sources: int, num_targets: int) -> int:
    sources, targets = copies
    assert len(sources) == len(targets)
    if sources:
        assert 0 <= min(sources) <= max(sources) < num_sources, "a copy from nowhere"
        assert 0 <= min(targets) <= max(targets) < num_targets, "a copy to nowhere"
        assert len(set(targets)) == len(targets), "two blocks are copied to one place"
    return len(sources)
