"""The executor that keeps count: what it answers, what it charges, what it does not put up with."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from pagoda.bench.scheduler.cost import CostModel
from pagoda.bench.scheduler.executor import CountingExecutor
from pagoda.bench.scheduler.trace import tokens_at
from pagoda.scheduler.core.plan import BlockCopies, Grant, Push, RowStart, StepPlan
from pagoda.scheduler.core.request import Sampling
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec

MODEL = ModelSpec("f", "llama", 64, 1000, frozenset(), "none")
SPEC = LaneSpec("", ExecutorRole.MIXED, MODEL, 4, 16, 4, 12, num_host_blocks=2)
# A second per token, 100 per token of context; host memory takes or gives two tokens a second.
COST = CostModel(0, 1, 1, 0, 0.01, 1, 2, step_overhead_s=0.0)


def start(row: int, num_tokens: int, blocks: list[int], num_computed: int = 0) -> RowStart:
    return RowStart(row, array("I", range(num_tokens)), num_computed, blocks, Sampling(seed=50 + row))


def expected(row: int, position: int) -> int:
    return int(tokens_at(np.array([50 + row], np.uint64), np.array([position]), 1000)[0])


def test_rows_run_as_the_contract_says() -> None:
    executor = CountingExecutor(SPEC, COST)
    plan = StepPlan(
        1,
        started_rows=[start(2, 6, [0, 1]), start(0, 5, [2, 3], num_computed=4), start(1, 9, [4, 5, 6])],
        chunk_rows=[2, 1],
        chunk_num_tokens=[6, 3],
    )
    result, seconds = executor.run(plan)
    # Row 0 has one token left, and runs unnamed; row 1 is not done with its prompt.
    assert result.rows.tolist() == [0, 2]
    assert result.token_ids.tolist() == [expected(0, 5), expected(2, 6)]
    assert seconds == 10 + 100 * (5 + 6 + 3)
    assert result.forward_ns == round(seconds * 1e9)

    result, seconds = executor.run(StepPlan(2, ended_rows=[1], copies=BlockCopies([1], [7])))
    assert result.rows.tolist() == [0, 2]
    assert result.token_ids.tolist() == [expected(0, 6), expected(2, 7)]
    assert seconds == 2 + 100 * (6 + 7) + 2 * 4 * 100

    result, seconds = executor.run(
        StepPlan(
            3,
            ended_rows=[0],
            offloads=BlockCopies([2], [1]),
            loads=BlockCopies([1], [8]),
            started_rows=[start(0, 4, [8], num_computed=3)],
        )
    )
    assert result.token_ids.tolist() == [expected(0, 4), expected(2, 8)]
    assert seconds == 2 + 100 * (4 + 8) + 2 * 4 / 2


def test_blocks_that_come_and_go() -> None:
    executor = CountingExecutor(SPEC, COST)
    # A step of nothing but orders.
    result, seconds = executor.run(StepPlan(1, grants=[Grant(7, [3, 4, 5])]))
    assert result.rows.tolist() == []
    assert seconds == 0
    assert executor.receive(Push(7, "x", 0, [9, 1])) == 2
    assert executor.receive(Push(8, "x", 0, [9])) is None
    assert executor.receive(Push(7, "x", 2, [0])) == 3
    # What leaves is read where it is, beside the steps.
    _, seconds = executor.run(StepPlan(2, withdrawn=[7], pushes=[Push(1, "x", 0, [3, 4])]))
    assert seconds == 0
    assert executor.receive(Push(7, "x", 3, [0])) is None
    # Its blocks can be granted again.
    executor.run(StepPlan(3, grants=[Grant(8, [5])]))
    with pytest.raises(AssertionError, match="more blocks than were granted"):
        executor.receive(Push(8, "x", 0, [1, 2]))
    with pytest.raises(AssertionError, match="in another order"):
        executor.receive(Push(8, "x", 1, [1]))


def test_block_tables_grow_and_change() -> None:
    executor = CountingExecutor(SPEC, COST)
    executor.run(StepPlan(1, started_rows=[start(0, 4, [0], num_computed=3)]))
    executor.run(StepPlan(2, block_rows=[0, 0], block_positions=[1, 0], block_ids=[9, 5]))
    with pytest.raises(AssertionError, match="hole"):
        executor.run(StepPlan(3, block_rows=[0], block_positions=[3], block_ids=[1]))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(3), "step 3 after 1"),
        (StepPlan(2, ended_rows=[3]), "a free row ends"),
        (StepPlan(2, started_rows=[start(0, 2, [3])]), "row 0 is taken"),
        (StepPlan(2, started_rows=[start(3, 2, [3, 3])]), "twice in one table"),
        (StepPlan(2, block_rows=[3], block_positions=[0], block_ids=[4]), "free row 3"),
        (StepPlan(2, chunk_rows=[0], chunk_num_tokens=[1]), "not more than one token left"),
        (StepPlan(2, chunk_rows=[1], chunk_num_tokens=[8]), "empty or too long"),
        (StepPlan(2, chunk_rows=[1, 1], chunk_num_tokens=[2, 2]), "chunks of one row"),
        (StepPlan(2, started_rows=[start(2, 9, [3])], chunk_rows=[2], chunk_num_tokens=[9]), "beyond its block table"),
        (
            StepPlan(2, started_rows=[start(2, 12, [3, 4, 5])], chunk_rows=[1, 2], chunk_num_tokens=[6, 12]),
            "19 tokens",
        ),
        (StepPlan(2, ended_rows=[0]), "at least one row"),
        (StepPlan(2, withdrawn=[1]), "no grant 1"),
        (StepPlan(2, grants=[Grant(1, [1]), Grant(1, [2])]), "there is a grant 1"),
        (StepPlan(2, grants=[Grant(1, [1, 2]), Grant(2, [2])]), "granted twice"),
        (StepPlan(2, pushes=[Push(1, "x", 0, [16])]), "a push from nowhere"),
        (StepPlan(2, copies=BlockCopies([1, 2], [3, 3])), "to one place"),
        (StepPlan(2, loads=BlockCopies([2], [3])), "from nowhere"),
        (StepPlan(2, offloads=BlockCopies([3], [2])), "to nowhere"),
    ],
)
def test_what_the_contract_forbids(plan: StepPlan, message: str) -> None:
    executor = CountingExecutor(SPEC, COST)
    first = StepPlan(
        1,
        started_rows=[start(0, 4, [0, 1], num_computed=3), start(1, 8, [2, 10])],
        chunk_rows=[1],
        chunk_num_tokens=[2],
    )
    executor.run(first)
    with pytest.raises(AssertionError, match=message):
        executor.run(plan)
