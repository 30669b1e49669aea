"""Whole steps of a tiny model: rows whose blocks were moved go on as if they had not been."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from step_plans import make_plan
from torch import Tensor

from pagoda.executor.batch import StepInputs
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.plan_arrays import PlanError
from pagoda.executor.runner import Runner, load_runner
from pagoda.rpc.arrays import unpack_u32

BLOCK_SIZE, NUM_BLOCKS, NUM_HOST_BLOCKS = 4, 32, 8
# In float32 the last bits of a row depend on the number of rows, see `DenseLinear`.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.0}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "seed": 3}
PROMPT = random.Random(0).sample(range(96), 10)
OTHER = random.Random(1).sample(range(96), 13)


class Driver:
    """Runs plans, and keeps every row's logits and tokens."""

    def __init__(self, folder: Path, dtype: str) -> None:
        # Keys and values of 2 layers with 2 heads of 8 numbers.
        block_bytes = 2 * 2 * BLOCK_SIZE * 2 * 8 * (4 if dtype == "float32" else 2)
        self.runner: Runner = load_runner(
            ExecutorOptions(
                model=str(folder),
                load_format="dummy",
                device="cpu",
                dtype=dtype,
                threads=1,
                block_size=BLOCK_SIZE,
                max_num_seqs=4,
                num_gpu_blocks_override=NUM_BLOCKS,
                kv_offloading_size=NUM_HOST_BLOCKS * block_bytes / 2**30,
            )
        )
        self.steps = itertools.count(1)
        self.logits: dict[int, list[Tensor]] = {}
        self.tokens: dict[int, list[int]] = {}
        forward = self.runner.forward

        def recording(inputs: StepInputs, tokens: NDArray[np.int64]) -> Tensor:
            hidden = forward(inputs, tokens)
            logits = self.runner.model.decoder.logits(hidden)
            for row, each in zip(inputs.sample_rows.tolist(), logits, strict=True):
                self.logits.setdefault(row, []).append(each)
            return hidden

        self.runner.forward = recording  # type: ignore[method-assign]

    def step(self, chunks: dict[int, int] | None = None, **changes: Any) -> None:
        result = self.runner.execute(make_plan(chunks, step=next(self.steps), **changes))
        rows = unpack_u32(result.rows).tolist()
        assert rows == sorted(rows)
        for row, token in zip(rows, unpack_u32(result.token_ids).tolist(), strict=True):
            self.tokens.setdefault(row, []).append(token)

    def run_alone(self, tokens: list[int], num_new: int) -> tuple[list[int], list[Tensor]]:
        """The tokens that follow `tokens`, and their logits."""
        self.forget()
        blocks = list(range(-(-(len(tokens) + num_new) // BLOCK_SIZE)))
        self.step({0: len(tokens)}, starts=[start(0, tokens, blocks)])
        for _ in range(num_new - 1):
            self.step()
        return self.tokens[0], self.logits[0]

    def forget(self) -> None:
        """Starts anew, with a cache in which whatever is read without being written shows."""
        self.runner.reset()
        self.logits, self.tokens = {}, {}
        for part in itertools.chain.from_iterable(self.runner._kv):
            part.fill_(float("nan"))


def start(row: int, tokens: list[int], blocks: list[int], computed: int = 0) -> dict[str, Any]:
    return {"row": row, "tokens": tokens, "blocks": blocks, "computed": computed, "sampling": SAMPLING}


def assert_same(logits: list[Tensor], expected: list[Tensor], dtype: str) -> None:
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=TOLERANCE[dtype], rtol=0)


@pytest.fixture
def make_driver(tiny_model: Path) -> Callable[[str], Driver]:
    return lambda dtype: Driver(tiny_model, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("moves", ["right", "wrong"])
def test_a_row_that_was_in_host_memory(make_driver: Callable[[str], Driver], dtype: str, moves: str) -> None:
    driver = make_driver(dtype)
    expected_tokens, expected_logits = driver.run_alone(PROMPT, 12)
    driver.forget()
    driver.step({1: 10}, starts=[start(1, PROMPT, [7, 2, 5, 4])])
    for _ in range(4):
        driver.step()
    tokens = PROMPT + driver.tokens.pop(1)
    logits = driver.logits.pop(1)
    # The row leaves with 14 computed tokens, and another one overwrites its blocks.
    driver.step(
        {3: 13},
        ended=[1],
        offloads=[(7, 0), (2, 6), (5, 3), (4, 1)],
        starts=[start(3, OTHER, [2, 5, 4, 7])],
    )
    driver.step()
    # It comes back in another row and other blocks, beside the other one; one token is left.
    loads = [(0, 8), (6, 9), (3, 6), (1, 3)] if moves == "right" else [(0, 8), (6, 9), (3, 6), (3, 3)]
    driver.step(loads=loads, starts=[start(0, tokens, [8, 9, 6, 3, 11, 12], computed=14)])
    driver.step(ended=[3], starts=[start(2, OTHER, [20, 21, 22, 23, 24])])
    driver.step({2: 13})
    for _ in range(4):
        driver.step()
    logits += driver.logits[0]
    if moves == "right":
        assert tokens[len(PROMPT) :] + driver.tokens[0] == expected_tokens
        assert_same(logits, expected_logits, dtype)
    else:
        with pytest.raises(AssertionError, match="Tensor-likes are not"):
            assert_same(logits, expected_logits, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_goes_on_from_a_copied_partial_block(make_driver: Callable[[str], Driver], dtype: str) -> None:
    driver = make_driver(dtype)
    branch = [*PROMPT, 5, 6, 7]
    expected = {1: driver.run_alone(PROMPT, 8), 2: driver.run_alone(branch, 8), 0: driver.run_alone([*PROMPT, 8], 8)}
    driver.forget()
    driver.step({1: 10}, starts=[start(1, PROMPT, [3, 4, 6, 9, 10])])
    # Two rows branch off after the 10 tokens: 2 full blocks are shared, half of the third one is copied for each.
    driver.step(
        {2: 3},
        copies=[(6, 7), (6, 8)],
        starts=[
            start(2, branch, [3, 4, 7, 11, 12, 13], computed=10),
            start(0, [*PROMPT, 8], [3, 4, 8, 14, 15], computed=10),
        ],
    )
    for _ in range(7):
        driver.step()
    for row, (tokens, logits) in expected.items():
        assert driver.tokens[row][:8] == tokens
        assert_same(driver.logits[row][:8], logits, dtype)


def test_blocks_move_in_a_step_that_runs_nothing(make_driver: Callable[[str], Driver]) -> None:
    driver = make_driver("float32")
    expected, _ = driver.run_alone(PROMPT, 3)
    driver.forget()
    driver.step({1: 10}, starts=[start(1, PROMPT, [3, 4, 6])])
    driver.step(ended=[1], offloads=[(3, 0)], copies=[(4, 3), (6, 4)])
    driver.step(loads=[(0, 6)])
    driver.step(starts=[start(1, PROMPT + driver.tokens[1], [6, 3, 4, 9], computed=10)])
    driver.step()
    assert driver.tokens[1] == expected


def test_contradictions_of_blocks_are_refused(make_driver: Callable[[str], Driver]) -> None:
    driver = make_driver("float32")
    assert driver.runner.host_memory is not None
    assert (driver.runner.host_memory.num_blocks, driver.runner.host_memory.swap_only) == (NUM_HOST_BLOCKS, False)
    with pytest.raises(PlanError, match=r"offloads\.targets has 8"):
        driver.step(offloads=[(0, NUM_HOST_BLOCKS)])
    with pytest.raises(PlanError, match=r"copies\.sources has 32"):
        driver.step(copies=[(NUM_BLOCKS, 0)])
