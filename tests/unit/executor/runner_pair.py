"""A tiny model twice, once with plain steps and once with launched ones, and random plans for both."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_plans import make_plan
from test_batch_random import BLOCK_SIZE, BUDGET, MAX_LEN, NUM_BLOCKS, NUM_ROWS, Model, right_change
from torch import Tensor

from pagoda.executor.batch import SamplingRows
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.device.graph import EagerGraph, Graph, MakeGraph, Work
from pagoda.executor.runner import Runner, load_runner
from pagoda.executor.sampler import sample
from pagoda.kernels.sampling import SamplingTensors
from pagoda.v1 import step_pb2

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "top_p": 1.0},
    {"temperature": 1.0, "top_p": 1.0, "seed": 2**63 + 5},
    {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    {"temperature": 1.3, "top_p": 1.0, "top_k": 5, "seed": 9},
    {"temperature": 1.0, "top_p": 0.95, "top_k": 2**32 - 1, "min_p": 0.05, "seed": 4},
]


class CountedGraphs:
    """Makes graphs; knows how often those of each size were replayed."""

    def __init__(self, make_graph: MakeGraph = EagerGraph) -> None:
        self.replays: Counter[int] = Counter()
        self._make_graph = make_graph

    def __call__(self, work: Work) -> Graph:
        graph = self._make_graph(work)
        counts = self.replays

        class Counted:
            def replay(self) -> Tensor:
                tokens = graph.replay()
                counts[len(tokens)] += 1
                return tokens

        return Counted()


class Pair:
    """Both runners; their caches begin as zeros, since random plans let rows start with blocks that nobody wrote."""

    def __init__(
        self,
        folder: Path,
        *,
        make_graph: MakeGraph = EagerGraph,
        plain_graph: MakeGraph | None = None,
        plain_kernels: str | None = None,
        **options: Any,
    ) -> None:
        """options: of the executor
        plain_graph: makes the plain steps launched ones, too, with other graphs
        plain_kernels: those of plain steps, where they are others
        """
        folder.joinpath("config.json").write_text(json.dumps(CONFIG))
        executor = ExecutorOptions(
            model=str(folder),
            load_format="dummy",
            threads=1,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_LEN,
            max_num_seqs=NUM_ROWS,
            max_num_batched_tokens=BUDGET,
            num_gpu_blocks_override=NUM_BLOCKS,
            **options,
        )
        sizes = {"max_num_seqs": NUM_ROWS, "max_num_batched_tokens": BUDGET}
        base = load_runner(executor)
        kernels = replace(base.model.kernels, sample=base.model.kernels.sample or _sample)
        self.graphs = CountedGraphs(make_graph)
        self.ahead = Runner(replace(base.model, kernels=kernels), base.layout, make_graph=self.graphs, **sizes)
        if plain_kernels:
            base = load_runner(replace(executor, kernels=plain_kernels))
        self.plain = Runner(base.model, base.layout, make_graph=plain_graph, **sizes)
        for runner in (self.plain, self.ahead):
            runner.warm_up()
            for part in itertools.chain.from_iterable(runner._kv):
                part.zero_()
        self.graphs.replays.clear()

    def check(self, plans: Sequence[step_pb2.StepPlan], most_in_flight: Callable[[], int]) -> int:
        """Runs the plans on both, and compares their tokens. Returns the number of tokens."""
        num_tokens = 0
        in_flight: deque[tuple[Any, step_pb2.StepResult]] = deque()

        def finish() -> None:
            pending, expected = in_flight.popleft()
            assert not pending.is_done
            pending.wait()
            result = pending.finish()
            assert result.forward_ns > 0
            result.forward_ns = expected.forward_ns = 0
            assert result == expected

        for plan in plans:
            expected = self.plain.execute(plan)
            num_tokens += len(expected.rows) // 4
            in_flight.append((self.ahead.launch(plan), expected))
            while len(in_flight) > most_in_flight():
                finish()
        while in_flight:
            finish()
        return num_tokens


def random_plans(seed: int, num_plans: int) -> list[step_pb2.StepPlan]:
    """Plans as a scheduler makes them, which never knows what the last step has sampled."""
    rng = random.Random(seed)
    model = Model()
    plans = []
    for step in range(1, num_plans + 1):
        change = right_change(model, rng)
        for row, num_tokens in model.apply(change):
            model.rows[row].computed += num_tokens
            if not model.rows[row].left:
                model.rows[row].tokens.append(0)
        for start in change["starts"]:
            start["sampling"] = rng.choice(SAMPLINGS)
        plans.append(make_plan(step=step, **change))
    return plans


def padded_plans() -> list[step_pb2.StepPlan]:
    """Five rows, then six, then three; every row decodes with other parameters."""
    blocks = np.random.default_rng(0).permutation(NUM_BLOCKS)[:36].reshape(6, 6).tolist()
    starts = [
        {"row": row, "tokens": [3, 1, row], "blocks": blocks[row], "sampling": SAMPLINGS[row % len(SAMPLINGS)]}
        for row in range(NUM_ROWS)
    ]
    plans = [make_plan(dict.fromkeys(range(5), 3), step=1, starts=starts[:5])]
    plans += [make_plan(step=step) for step in range(2, 8)]
    plans += [make_plan({5: 3}, step=8, starts=starts[5:]), make_plan(step=9)]
    plans += [make_plan(step=10, ended=[0, 2, 3]), make_plan(step=11)]
    return plans


def _sample(logits: Tensor, rows: SamplingTensors) -> Tensor:
    """For kernels that cannot sample: the executor's own sampler."""
    parameters = SamplingRows(
        rows.temperature.numpy(),
        rows.top_p.numpy(),
        rows.top_k.numpy().astype(np.int64),
        rows.min_p.numpy(),
        rows.seed.numpy().view(np.uint64),
        rows.position.numpy(),
    )
    return torch.from_numpy(sample(logits, parameters))
