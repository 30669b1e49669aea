"""The persistent batch: what plans do to it, the arrays of a step, and plans that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pagoda.executor.batch import Batch, PlanError, StepInputs
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

BLOCK_SIZE = 4


@pytest.fixture
def batch() -> Batch:
    return Batch(
        max_num_seqs=4,
        max_model_len=20,
        max_num_batched_tokens=16,
        num_blocks=12,
        block_size=BLOCK_SIZE,
        vocab_size=100,
    )


def plan(
    run: dict[int, int] | None = None,
    *,
    starts: list[dict[str, Any]] | None = None,
    ended: list[int] | None = None,
    blocks: list[tuple[int, int]] | None = None,
) -> step_pb2.StepPlan:
    """run: row -> new tokens; blocks: (row, block id) appended."""
    run, blocks = run or {}, blocks or []
    message = step_pb2.StepPlan(
        ended_rows=pack_u32(ended or []),
        block_rows=pack_u32([row for row, _ in blocks]),
        block_ids=pack_u32([block for _, block in blocks]),
        rows=pack_u32(list(run)),
        num_new_tokens=pack_u32(list(run.values())),
    )
    for start in starts or []:
        sampling = start.get("sampling", {"temperature": 1.0})
        message.started_rows.add(
            row=start["row"],
            token_ids=pack_u32(start["tokens"]),
            num_computed_tokens=start.get("computed", 0),
            block_ids=pack_u32(start.get("blocks", [])),
            sampling=step_pb2.RowSampling(**sampling),
        )
    return message


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
    assert as_lists(run(batch, plan({2: 3, 0: 1}, starts=[first, second]))) == {
        "token_ids": [10, 11, 12, 24],
        "positions": [0, 1, 2, 4],
        "slot_mapping": [28, 29, 30, 24],
        "cu_seqlens_q": [0, 3, 4],
        "seq_lens": [3, 5],
        "sample_rows": [0],  # the other one has half a prompt to go
        "sample_tokens": [3],
    }
    batch.append(np.array([0]), np.array([25]))
    # The rest of the prompt beside a decoding row, in another order.
    inputs = run(batch, plan({0: 1, 2: 3}))
    assert as_lists(inputs) == {
        "token_ids": [25, 13, 14, 15],
        "positions": [5, 3, 4, 5],
        "slot_mapping": [25, 31, 12, 13],
        "cu_seqlens_q": [0, 1, 4],
        "seq_lens": [6, 6],
        "sample_rows": [0, 2],
        "sample_tokens": [0, 3],
    }
    assert inputs.block_tables.tolist() == [[5, 6], [7, 3]]
    batch.append(np.array([0, 2]), np.array([26, 16]))
    # Row 0 leaves, its place and a block of it are taken in the same plan.
    third = {"row": 0, "tokens": [30], "blocks": [6]}
    assert as_lists(run(batch, plan({2: 1, 0: 1}, ended=[0], starts=[third])))["slot_mapping"] == [14, 24]


def test_blocks_are_appended_in_order(batch: Batch) -> None:
    starts = [{"row": 1, "tokens": list(range(11)), "blocks": [9]}, {"row": 3, "tokens": [1, 2]}]
    inputs = run(batch, plan({1: 11, 3: 2}, starts=starts, blocks=[(1, 8), (3, 0), (1, 4)]))
    assert inputs.block_tables[0].tolist() == [9, 8, 4]
    assert inputs.block_tables[1, 0] == 0
    assert inputs.slot_mapping[[0, 4, 8, 11]].tolist() == [36, 32, 16, 0]


def test_sampling_rows(batch: Batch) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": 2**64 - 1}
    batch.apply(plan({3: 3}, starts=[{"row": 3, "tokens": [1, 2, 3], "blocks": [1], "sampling": sampling}]))
    rows = batch.sampling(np.array([3]))
    assert [rows.temperature[0], rows.top_p[0], rows.top_k[0], rows.min_p[0]] == [0.5, 0.25, 7, 0.125]
    assert int(rows.seed[0]) == 2**64 - 1
    assert rows.position[0] == 3


def test_a_full_sequence_may_sample_its_last_token(batch: Batch) -> None:
    start = {"row": 0, "tokens": list(range(20)), "blocks": [0, 1, 2, 3, 4], "computed": 10}
    assert run(batch, plan({0: 10}, starts=[start])).sample_rows.tolist() == [0]
    batch.append(np.array([0]), np.array([5]))
    with pytest.raises(PlanError, match="too few blocks"):
        batch.apply(plan({0: 1}))


def test_a_plan_may_run_nothing(batch: Batch) -> None:
    start = {"row": 0, "tokens": [1, 2], "blocks": [0]}
    assert batch.apply(plan(starts=[start])) is None
    assert batch.apply(plan(ended=[0])) is None
    assert run(batch, plan({0: 2}, starts=[start])).positions.tolist() == [0, 1]


def test_reset_frees_every_row(batch: Batch) -> None:
    start = {"row": 0, "tokens": [1, 2], "blocks": [0]}
    batch.apply(plan({0: 2}, starts=[start]))
    batch.reset()
    assert run(batch, plan({0: 2}, starts=[start])).positions.tolist() == [0, 1]


ROW1 = {"row": 1, "tokens": [1, 2, 3], "blocks": [2]}


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        ("row 3 ended, but not active", plan({1: 1}, ended=[3])),
        ("ended_rows has row 4", plan({1: 1}, ended=[4])),
        ("row 1 starts, but it is active", plan({1: 1}, starts=[ROW1])),
        ("row 9 starts, but it is active or outside", plan({1: 1}, starts=[ROW1 | {"row": 9}])),
        ("starts with 0 tokens", plan({0: 1}, starts=[{"row": 0, "tokens": []}])),
        (
            "starts with 2 tokens, 2 of them computed",
            plan({0: 1}, starts=[{"row": 0, "tokens": [1, 2], "computed": 2}]),
        ),
        ("at most 20 fit", plan({0: 1}, starts=[{"row": 0, "tokens": list(range(21)), "blocks": [0]}])),
        (
            "starts with 1 blocks, 5 tokens computed",
            plan({0: 1}, starts=[{"row": 0, "tokens": list(range(6)), "computed": 5, "blocks": [0]}]),
        ),
        ("block 12", plan({0: 1}, starts=[{"row": 0, "tokens": [1], "blocks": [12]}])),
        ("block 99", plan({1: 1}, blocks=[(1, 99)])),
        ("row 2 gets a block, but is not active", plan({1: 1}, blocks=[(2, 0)])),
        ("gets more than 5 blocks", plan({1: 1}, blocks=[(1, i) for i in range(3, 8)])),
        ("row 2 runs, but is not active", plan({2: 1})),
        ("row 1 runs tokens that it does not have", plan({1: 4})),
        ("row 1 runs tokens that it does not have", plan({1: 0})),
        ("token 100; tokens are", plan({0: 1}, starts=[{"row": 0, "tokens": [100], "blocks": [0]}])),
        ("1 rows, but 2 num_new_tokens", step_pb2.StepPlan(rows=pack_u32([1]), num_new_tokens=pack_u32([1, 1]))),
        ("a row runs twice", step_pb2.StepPlan(rows=pack_u32([1, 1]), num_new_tokens=pack_u32([1, 1]))),
        ("has too few blocks", plan({0: 5}, starts=[{"row": 0, "tokens": list(range(5)), "blocks": [0]}])),
        ("same cache slot", plan({1: 1, 0: 1}, starts=[{"row": 0, "tokens": [1, 2], "computed": 1, "blocks": [2]}])),
        (
            "the step has 17 tokens; at most 16",
            plan({0: 17}, starts=[{"row": 0, "tokens": list(range(18)), "blocks": [0, 1, 3, 4, 5]}]),
        ),
    ],
)
def test_wrong_plans_are_refused(batch: Batch, message: str, bad: step_pb2.StepPlan) -> None:
    batch.apply(plan({1: 1}, starts=[ROW1]))
    with pytest.raises(PlanError, match=message):
        batch.apply(bad)
