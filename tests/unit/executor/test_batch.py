"""The persistent batch: what plans do to it, the arrays of a step, and plans that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from step_plans import make_plan

from pagoda.executor.batch import Batch, StepInputs
from pagoda.executor.plan_arrays import PlanError
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

BLOCK_SIZE = 4


@pytest.fixture
def batch() -> Batch:
    return Batch(
        max_num_seqs=4,
        max_model_len=19,
        max_num_batched_tokens=16,
        num_blocks=12,
        block_size=BLOCK_SIZE,
        vocab_size=100,
    )


def run(batch: Batch, message: step_pb2.StepPlan) -> StepInputs:
    inputs = batch.apply(message)
    assert inputs is not None
    return inputs


def as_lists(inputs: StepInputs) -> dict[str, list[int]]:
    names = ("token_ids", "positions", "slot_mapping", "cu_seqlens_q", "seq_lens", "sample_rows", "sample_tokens")
    return {name: getattr(inputs, name).tolist() for name in names}


def test_the_life_of_two_rows(batch: Batch) -> None:
    first = {"row": 2, "tokens": [10, 11, 12, 13, 14, 15], "blocks": [7, 3]}
    second = {"row": 0, "tokens": [20, 21, 22, 23, 24], "blocks": [5, 6], "computed": 4}
    # The second one has one token left: nobody needs to name it.
    assert as_lists(run(batch, make_plan({2: 3}, starts=[first, second]))) == {
        "token_ids": [24, 10, 11, 12],
        "positions": [4, 0, 1, 2],
        "slot_mapping": [24, 28, 29, 30],
        "cu_seqlens_q": [0, 1, 4],
        "seq_lens": [5, 3],
        "sample_rows": [0],  # the other one has half a prompt to go
        "sample_tokens": [0],
    }
    batch.append(np.array([0]), np.array([25]))
    # A started row goes on only when it is told to.
    assert as_lists(run(batch, make_plan()))["token_ids"] == [25]
    batch.append(np.array([0]), np.array([26]))
    inputs = run(batch, make_plan({2: 3}))
    assert as_lists(inputs) == {
        "token_ids": [26, 13, 14, 15],
        "positions": [6, 3, 4, 5],
        "slot_mapping": [26, 31, 12, 13],
        "cu_seqlens_q": [0, 1, 4],
        "seq_lens": [7, 6],
        "sample_rows": [0, 2],
        "sample_tokens": [0, 3],
    }
    assert inputs.block_tables.tolist() == [[5, 6], [7, 3]]
    batch.append(np.array([0, 2]), np.array([27, 16]))
    # Row 0 leaves, its place and a block of it are taken in the same plan.
    third = {"row": 0, "tokens": [30], "blocks": [6]}
    assert as_lists(run(batch, make_plan(ended=[0], starts=[third])))["slot_mapping"] == [24, 14]


def test_the_last_token_of_a_chunked_prompt_runs_by_itself(batch: Batch) -> None:
    start = {"row": 3, "tokens": [1, 2, 3, 4], "blocks": [8]}
    assert run(batch, make_plan({3: 3}, starts=[start])).sample_rows.tolist() == []
    inputs = run(batch, make_plan())
    assert (inputs.token_ids.tolist(), inputs.sample_rows.tolist()) == ([4], [3])


def test_rows_run_in_ascending_order(batch: Batch) -> None:
    starts = [{"row": row, "tokens": [row, row + 10, row + 20], "blocks": [row]} for row in (3, 1, 2)]
    inputs = run(batch, make_plan({2: 3, 3: 1, 1: 2}, starts=starts))
    assert inputs.token_ids.tolist() == [1, 11, 2, 12, 22, 3]
    assert inputs.sample_rows.tolist() == [2]


def test_blocks_are_appended_and_replaced_in_order(batch: Batch) -> None:
    starts = [{"row": 1, "tokens": list(range(11)), "blocks": [9]}, {"row": 3, "tokens": [1, 2]}]
    blocks = [(1, 1, 8), (3, 0, 0), (1, 2, 4), (1, 0, 5), (1, 2, 6)]
    inputs = run(batch, make_plan({1: 11, 3: 2}, starts=starts, blocks=blocks))
    assert inputs.block_tables[0].tolist() == [5, 8, 6]
    assert inputs.block_tables[1, 0] == 0
    assert inputs.slot_mapping[[0, 4, 8, 11]].tolist() == [20, 32, 24, 0]
    # Later, too.
    batch.append(np.array([1, 3]), np.array([7, 7]))
    inputs = run(batch, make_plan(blocks=[(1, 1, 11), (1, 2, 10)]))
    assert inputs.block_tables[0].tolist() == [5, 11, 10]
    assert inputs.slot_mapping.tolist() == [43, 2]


def test_sampling_rows(batch: Batch) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": 2**64 - 1}
    batch.apply(make_plan({3: 3}, starts=[{"row": 3, "tokens": [1, 2, 3], "blocks": [1], "sampling": sampling}]))
    rows = batch.sampling(np.array([3]))
    assert [rows.temperature[0], rows.top_p[0], rows.top_k[0], rows.min_p[0]] == [0.5, 0.25, 7, 0.125]
    assert int(rows.seed[0]) == 2**64 - 1
    assert rows.position[0] == 3


@pytest.mark.parametrize("late", [[], [(0, 4, 4)]])
def test_a_full_sequence_may_sample_its_last_token(batch: Batch, late: list[tuple[int, int, int]]) -> None:
    blocks = [0, 1, 2, 3, 4][: 5 - len(late)]
    start = {"row": 0, "tokens": list(range(19)), "blocks": blocks, "computed": 10}
    assert run(batch, make_plan({0: 9}, starts=[start], blocks=late)).sample_rows.tolist() == [0]
    batch.append(np.array([0]), np.array([5]))
    # The last block has room for it.
    with pytest.raises(PlanError, match="row 0 exceeds 19 tokens"):
        batch.apply(make_plan())


def test_a_plan_may_run_nothing(batch: Batch) -> None:
    start = {"row": 0, "tokens": [1, 2], "blocks": [0]}
    assert batch.apply(make_plan()) is None
    assert batch.apply(make_plan(starts=[start])) is None
    assert batch.apply(make_plan(ended=[0])) is None
    assert run(batch, make_plan({0: 2}, starts=[start])).positions.tolist() == [0, 1]


def test_reset_frees_every_row(batch: Batch) -> None:
    start = {"row": 0, "tokens": [1, 2], "blocks": [0]}
    batch.apply(make_plan({0: 2}, starts=[start]))
    batch.reset()
    assert batch.apply(make_plan()) is None
    assert run(batch, make_plan({0: 2}, starts=[start])).positions.tolist() == [0, 1]


ROW1 = {"row": 1, "tokens": [1, 2, 3, 4, 5], "blocks": [2, 3]}


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        ("row 3 ends, but is not active", make_plan(ended=[3])),
        (r"ended_rows has 4, which is outside \[0, 4\)", make_plan(ended=[4])),
        ("ended_rows has 1 more than once", make_plan(ended=[1, 1])),
        ("ended_rows has 5 bytes", step_pb2.StepPlan(ended_rows=b"12345")),
        ("row 1 starts, but it is active", make_plan(starts=[ROW1])),
        ("row 9 starts, but it is active or outside", make_plan(starts=[ROW1 | {"row": 9}])),
        ("starts with 0 tokens", make_plan(starts=[{"row": 0, "tokens": []}])),
        ("starts with 2 tokens, 2 of them computed", make_plan(starts=[{"row": 0, "tokens": [1, 2], "computed": 2}])),
        ("at most 19 fit", make_plan(starts=[{"row": 0, "tokens": list(range(20)), "blocks": [0]}])),
        (
            "starts with 1 blocks, 5 tokens computed",
            make_plan(starts=[{"row": 0, "tokens": list(range(6)), "computed": 5, "blocks": [0]}]),
        ),
        ("starts with 6 blocks", make_plan(starts=[{"row": 0, "tokens": [1], "blocks": [4, 5, 6, 7, 8, 9]}])),
        ("token_ids has 100", make_plan(starts=[{"row": 0, "tokens": [100], "blocks": [0]}])),
        ("block_ids has 12", make_plan(starts=[{"row": 0, "tokens": [1], "blocks": [12]}])),
        ("block_ids has 99", make_plan(blocks=[(1, 2, 99)])),
        ("block_positions has 5", make_plan(blocks=[(1, 5, 4)])),
        ("row 2 gets a block, but is not active", make_plan(blocks=[(2, 0, 0)])),
        ("row 1 gets a block beyond the end of its block table", make_plan(blocks=[(1, 3, 4)])),
        ("row 1 gets a block beyond the end of its block table", make_plan(blocks=[(1, 3, 4), (1, 2, 5)])),
        (
            "row 0 gets a block beyond the end of its block table",
            make_plan(starts=[{"row": 0, "tokens": [1], "blocks": [4]}], blocks=[(1, 2, 5), (0, 2, 6), (1, 3, 7)]),
        ),
        (
            "2 block_rows, 1 block_positions, 2 block_ids",
            step_pb2.StepPlan(block_rows=pack_u32([1, 1]), block_positions=pack_u32([2]), block_ids=pack_u32([4, 5])),
        ),
        ("0 block_rows, 0 block_positions, 1 block_ids", step_pb2.StepPlan(block_ids=pack_u32([1]))),
        ("row 2 runs a chunk, but is not active", make_plan({2: 2})),
        ("row 1 runs a chunk of no tokens or more than it has left", make_plan({1: 5})),
        ("row 1 runs a chunk of no tokens or more than it has left", make_plan({1: 0})),
        (
            "row 0 runs a chunk, but has one token left and runs by itself",
            make_plan({0: 1}, starts=[{"row": 0, "tokens": [1], "blocks": [0]}]),
        ),
        ("1 chunk_rows, 2 chunk_num_tokens", step_pb2.StepPlan(chunk_rows=pack_u32([1]), chunk_num_tokens=bytes(8))),
        ("0 chunk_rows, 1 chunk_num_tokens", step_pb2.StepPlan(chunk_num_tokens=pack_u32([1]))),
        (
            "chunk_rows has 1 more than once",
            step_pb2.StepPlan(chunk_rows=pack_u32([1, 1]), chunk_num_tokens=pack_u32([1, 1])),
        ),
        (
            "row 0 has too few blocks",
            make_plan({0: 5}, starts=[{"row": 0, "tokens": list(range(5)), "blocks": [0]}]),
        ),
        ("row 0 has too few blocks", make_plan(starts=[{"row": 0, "tokens": [1], "blocks": []}])),
        (
            "rows 0 and 1 write to the same slot of block 2",
            make_plan({1: 1}, starts=[{"row": 0, "tokens": [1, 2], "computed": 1, "blocks": [2]}]),
        ),
        ("chunk_num_tokens has 17", make_plan({1: 17})),
        (
            "the step has 17 tokens; at most 16",
            make_plan({0: 14, 1: 3}, starts=[{"row": 0, "tokens": list(range(18)), "blocks": [0, 1, 4, 5, 6]}]),
        ),
    ],
)
def test_wrong_plans_are_refused(batch: Batch, message: str, bad: step_pb2.StepPlan) -> None:
    batch.apply(make_plan({1: 1}, starts=[ROW1]))
    with pytest.raises(PlanError, match=message):
        batch.apply(bad)
