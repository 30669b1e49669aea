"""Steps that are launched ahead, as graphs where they can be: bit for bit what plain steps are, on random plans."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from runner_pair import NUM_ROWS, SAMPLINGS, Pair, padded_plans, random_plans
from step_plans import make_plan

from pagoda.executor.device.changes import table_changes
from pagoda.executor.device.steps import graph_sizes

NUM_PLANS = 60


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_tokens_and_cache_as_plain_steps(tmp_path: Path, dtype: str, seed: int) -> None:
    pair = Pair(tmp_path, device="cpu", dtype=dtype)
    rng = random.Random(seed)
    num_tokens = pair.check(random_plans(seed, NUM_PLANS), lambda: rng.randint(0, 2))
    assert num_tokens > NUM_PLANS
    for ours, plain in zip(pair.ahead._kv, pair.plain._kv, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(plain))
    # Of several sizes; and there were steps that are no graphs.
    assert set(pair.graphs.replays) <= set(graph_sizes(NUM_ROWS))
    assert len(pair.graphs.replays) > 1
    assert pair.graphs.replays.total() < NUM_PLANS


def test_padding_is_used_and_harmless(tmp_path: Path) -> None:
    """Five rows run as six; the sixth row, which is free, starts later in the same batch."""
    pair = Pair(tmp_path, device="cpu", dtype="float32")
    pair.check(padded_plans(), lambda: 2)
    assert pair.graphs.replays == {6: 7, 4: 2}


def test_a_plan_that_runs_nothing_changes_tables(tmp_path: Path) -> None:
    pair = Pair(tmp_path, device="cpu", dtype="float32")
    start = {"row": 1, "tokens": list(range(9)), "blocks": [30], "sampling": SAMPLINGS[0]}
    plans = [
        make_plan(step=1, starts=[start]),
        make_plan(step=2),
        make_plan(step=3, blocks=[(1, 1, 7), (1, 0, 12), (1, 2, 9), (1, 1, 8)]),
        make_plan({1: 9}, step=4),
        make_plan(step=5),
    ]
    assert pair.check(plans, lambda: 0) == 2


def test_of_several_blocks_for_one_place_the_last_stays() -> None:
    plan = make_plan(
        starts=[{"row": 2, "tokens": [1], "blocks": [5, 6]}],
        blocks=[(2, 1, 7), (0, 3, 9), (2, 1, 8), (2, 2, 4)],
    )
    places, blocks = table_changes(plan, 10)
    assert dict(zip(places.tolist(), blocks.tolist(), strict=True)) == {20: 5, 21: 8, 22: 4, 3: 9}
    assert table_changes(make_plan(), 10) == ()


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 7, 8, 9, 100, 256, 1000])
def test_graph_sizes(max_num_seqs: int) -> None:
    sizes = graph_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, max_num_seqs)
    for rows in range(1, max_num_seqs + 1):
        assert min(size for size in sizes if size >= rows) - rows <= max(7, rows / 8)


def test_the_largest_step_runs(tmp_path: Path) -> None:
    """For measuring memory: it stores nothing, and samples nothing that counts."""
    pair = Pair(tmp_path, device="cpu", dtype="float32")
    assert pair.ahead._device_steps
    pair.ahead._device_steps.run_largest()
    assert not any(part.any() for part in itertools.chain.from_iterable(pair.ahead._kv))
