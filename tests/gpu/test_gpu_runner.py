"""The runner on the device: captured graphs, launched ahead, against the same steps without graphs and plain torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from runner_pair import CONFIG, NUM_ROWS, Pair, padded_plans, random_plans

from pagoda.executor.config import ExecutorOptions
from pagoda.executor.device.graph import CudaGraphs, EagerGraph
from pagoda.executor.device.launched import Clock, Launched
from pagoda.executor.device.steps import graph_sizes
from pagoda.executor.runner import Runner, load_runner


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_graphs_have_the_bits_of_what_they_captured(tmp_path: Path, dtype: str, seed: int) -> None:
    pair = Pair(tmp_path, device="cuda", dtype=dtype, make_graph=CudaGraphs(), plain_graph=EagerGraph)
    assert pair.ahead.model.kernels.name == "triton"
    rng = random.Random(seed)
    assert pair.check(random_plans(seed, 100), lambda: rng.randint(0, 2)) > 100
    for ours, plain in zip(pair.ahead._kv, pair.plain._kv, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(plain))
    assert len(pair.graphs.replays) > 1


def test_the_same_tokens_as_plain_torch(tmp_path: Path) -> None:
    pair = Pair(tmp_path, device="cuda", dtype="float32", make_graph=CudaGraphs(), plain_kernels="reference")
    assert pair.plain.model.kernels.name == "reference"
    pair.check(padded_plans(), lambda: 2)
    assert pair.graphs.replays == {6: 7, 4: 2}


def test_launching_waits_for_nothing(tmp_path: Path) -> None:
    """torch raises an error where the host would wait for the device."""
    pair = Pair(tmp_path, device="cuda", dtype="bfloat16", make_graph=CudaGraphs(), plain_graph=EagerGraph)
    plans = random_plans(0, 60)
    for plan in plans[:30]:
        pair.ahead.execute(plan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [pair.ahead.launch(plan) for plan in plans[30:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.finish().step for each in pending] == list(range(31, 61))


def test_a_step_without_rows_ends_with_what_it_has_launched() -> None:
    torch.cuda._sleep(100_000_000)
    Launched(1, np.empty(0, np.int64), None, torch.device("cuda"), 0, Clock()).finish()
    assert torch.cuda.current_stream().query()


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_the_cache_leaves_room_for_steps_and_graphs(tmp_path: Path, enforce_eager: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 100_000, "max_position_embeddings": 4096}))
    free, _ = torch.cuda.mem_get_info()
    runner = load_runner(
        ExecutorOptions(
            model=str(tmp_path),
            load_format="dummy",
            device="cuda",
            dtype="bfloat16",
            max_num_seqs=NUM_ROWS,
            gpu_memory_utilization=0.9,
            enforce_eager=enforce_eager,
        )
    )
    assert isinstance(runner, Runner)
    assert 0.5 * free < runner.layout.num_bytes < 0.9 * free
    runner.warm_up()
    assert runner._device_steps
    assert sorted(runner._device_steps._graphs) == graph_sizes(NUM_ROWS)
    runner._device_steps.run_largest()
    torch.cuda.synchronize()
    assert runner.device_name == torch.cuda.get_device_name()
