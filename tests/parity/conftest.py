"""Tiny random checkpoints of every family, what transformers makes of them, and a planner to drive our runner."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda.executor.batch import StepInputs
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.runner import Runner, load_runner
from pagoda.rpc.arrays import pack_u32, unpack_u32
from pagoda.v1 import step_pb2

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCAB_SIZE = 128
NUM_NEW_TOKENS = 20
LENGTHS = (1, 2, 15, 16, 17, 50, 131, 300)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint to make, and how to serve it."""

    model_class: str
    config: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = LENGTHS
    max_model_len: int = 400
    max_shard_size: str = "1GB"


def _rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **values}}


_LONGROPE = {
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.0, 2.0, 4.0, 9.0],
    },
}

CASES: dict[str, Case] = {
    "llama": Case("LlamaForCausalLM"),
    "llama-biases": Case("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-mqa-tied-sharded": Case(
        "LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}, max_shard_size="60KB"
    ),
    "llama-linear": Case("LlamaForCausalLM", _rope("linear", factor=3.0)),
    "llama-llama3": Case(
        "LlamaForCausalLM",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100),
    ),
    "llama-yarn": Case("LlamaForCausalLM", _rope("yarn", factor=4.0, original_max_position_embeddings=100)),
    "qwen2-yarn": Case(
        "Qwen2ForCausalLM",
        _rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=64,
            beta_fast=16.0,
            beta_slow=2.0,
            attention_factor=0.9,
            truncate=False,
        ),
    ),
    "qwen2-window": Case(
        "Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": Case("MistralForCausalLM", {"sliding_window": 33, "head_dim": 8}),
    "gemma": Case("GemmaForCausalLM", {"head_dim": 16}),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 0.5,
        },
    ),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 24,
            "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 2.0},
            },
        },
    ),
    "phi3": Case("Phi3ForCausalLM", {"sliding_window": 60}),
    "phi3-short-factors": Case(
        "Phi3ForCausalLM",
        _LONGROPE | {"max_position_embeddings": 2048, "original_max_position_embeddings": 400},
    ),
    # transformers changes to the long factors when a sequence passes the original length; we have them throughout.
    "phi3-long-factors": Case(
        "Phi3ForCausalLM", _LONGROPE | {"original_max_position_embeddings": 30}, lengths=(31, 47, 131, 300)
    ),
}


@dataclass(frozen=True)
class Reference:
    """A checkpoint and what transformers computes from it."""

    folder: Path
    max_model_len: int
    prompts: list[list[int]]
    outputs: list[list[int]]
    """The greedy continuations."""

    logits: list[Tensor]
    """Of each prompt, [length, VOCAB_SIZE]."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Makes the reference of a case, once per session."""
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = _make_reference(CASES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get


def _make_reference(case: Case, folder: Path) -> Reference:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config_class = getattr(transformers, case.model_class).config_class
    torch.manual_seed(0)
    # Eager: the plainest code that transformers has for each family.
    model = getattr(transformers, case.model_class)._from_config(
        config_class(**_COMMON | case.config), attn_implementation="eager", dtype=torch.float32
    )
    _randomize(model, embedding_std=0.02 if case.model_class.startswith("Gemma") else 0.3)
    model.eval().save_pretrained(folder, max_shard_size=case.max_shard_size)
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in case.lengths]
    outputs, logits = [], []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            logits.append(model(ids).logits[0])
            generated = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_NEW_TOKENS
            )
            outputs.append(generated[0, len(prompt) :].tolist())
    return Reference(folder, case.max_model_len, prompts, outputs, logits)


def _randomize(model: torch.nn.Module, embedding_std: float) -> None:
    """Random values for everything, biases and norms too, at a scale at which each layer matters.

    embedding_std: small where embeddings are scaled up and tied, or the last token is all that decides the next
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed_tokens" in name:
                parameter.normal_(std=embedding_std)
            else:
                parameter.normal_(std=1.5 / math.sqrt(parameter.shape[1]))


class RecordingRunner(Runner):
    """Keeps the logits of every token it computes: (token ids, positions, logits) per step."""

    recorded: list[tuple[np.ndarray, np.ndarray, Tensor]]

    def forward(self, inputs: StepInputs, tokens: np.ndarray | None = None) -> Tensor:
        hidden = super().forward(inputs)
        self.recorded.append((inputs.cu_seqlens_q, inputs.positions, self.model.decoder.logits(hidden)))
        return hidden if tokens is None else hidden[tokens]


@dataclass
class Request:
    """What the planner knows of one sequence."""

    tokens: list[int]
    num_prompt: int
    sampling: step_pb2.RowSampling
    computed: int = 0
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)


class Planner:
    """A scheduler for tests: plans steps within a token budget, with rows and blocks in random order.

    The budget is at least one token per row.
    """

    def __init__(self, runner: RecordingRunner, *, budget: int, num_rows: int, seed: int = 0) -> None:
        self.runner = runner
        self.budget = budget
        self.rng = random.Random(seed)
        self.free_rows = self.rng.sample(range(num_rows), num_rows)
        num_blocks = runner.layout.num_blocks
        self.free_blocks = self.rng.sample(range(num_blocks), num_blocks)
        self.step = 0
        self.ended: list[int] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_new: int = NUM_NEW_TOKENS,
        *,
        samplings: Sequence[step_pb2.RowSampling] | None = None,
        preempt_at: Container[int] = (),
    ) -> list[Request]:
        """Runs all prompts to `num_new` tokens. preempt_at: steps before which a random row loses its place."""
        requests = [
            Request(list(prompt), len(prompt), samplings[i] if samplings else step_pb2.RowSampling())
            for i, prompt in enumerate(prompts)
        ]
        waiting, running = list(requests), []
        while waiting or running:
            if self.step in preempt_at and running:
                victim = running.pop(self.rng.randrange(len(running)))
                self._release(victim)
                waiting.append(victim)
            self._step(waiting, running)
            for request in [r for r in running if len(r.tokens) == r.num_prompt + num_new]:
                running.remove(request)
                self._release(request)
        return requests

    def _step(self, waiting: list[Request], running: list[Request]) -> None:
        self.step += 1
        plan = step_pb2.StepPlan(step=self.step, ended_rows=pack_u32(self.ended))
        self.ended = []
        budget, run = self.budget, []
        blocks: list[tuple[int, int, int]] = []
        chunks: list[tuple[int, int]] = []
        while waiting and self.free_rows:
            request = waiting.pop(0)
            request.row = self.free_rows.pop()
            running.append(request)
            plan.started_rows.add(row=request.row, token_ids=pack_u32(request.tokens), sampling=request.sampling)
        # Rows with one token left run in any case, the others not always in the same order.
        self.rng.shuffle(running)
        running.sort(key=lambda r: len(r.tokens) - r.computed > 1)
        for request in running:
            num_left = len(request.tokens) - request.computed
            num_new = min(num_left, budget)
            if not num_new:
                continue
            budget -= num_new
            while len(request.blocks) * self.runner.layout.block_size < request.computed + num_new:
                blocks.append((request.row, len(request.blocks), self.free_blocks.pop()))
                request.blocks.append(blocks[-1][2])
            if num_left > 1:
                chunks.append((request.row, num_new))
            run.append(request)
            request.computed += num_new
        blocks = [blocks[i] for i in _interleave([row for row, _, _ in blocks], self.rng)]
        plan.block_rows, plan.block_positions, plan.block_ids = (
            pack_u32([each[i] for each in blocks]) for i in range(3)
        )
        plan.chunk_rows, plan.chunk_num_tokens = (pack_u32([each[i] for each in chunks]) for i in range(2))
        # They run in the order of their rows.
        run.sort(key=lambda r: r.row)
        self.runner.recorded = []
        result = self.runner.execute(plan)
        assert result.step == self.step
        ((cu_seqlens, positions, logits),) = self.runner.recorded
        for i, request in enumerate(run):
            for token in range(cu_seqlens[i], cu_seqlens[i + 1]):
                request.logits[int(positions[token])] = logits[token]
        sampled = dict(zip(unpack_u32(result.rows).tolist(), unpack_u32(result.token_ids).tolist(), strict=True))
        assert set(sampled) == {r.row for r in run if r.computed == len(r.tokens)}
        for request in run:
            if request.row in sampled:
                request.tokens.append(sampled[request.row])

    def _release(self, request: Request) -> None:
        self.ended.append(request.row)
        self.free_rows.insert(self.rng.randint(0, len(self.free_rows)), request.row)
        self.free_blocks[:0] = request.blocks
        request.row, request.computed, request.blocks = -1, 0, []


def _interleave(rows: list[int], rng: random.Random) -> list[int]:
    """A random order of the indices of `rows` that keeps those of one row in order."""
    shuffled = rng.sample(rows, len(rows))
    remaining = {row: iter([i for i, each in enumerate(rows) if each == row]) for row in set(rows)}
    return [next(remaining[row]) for row in shuffled]


@pytest.fixture(scope="session")
def make_planner() -> Callable[..., Planner]:
    """A planner on a runner of the checkpoint in `folder`; options as ExecutorOptions has them."""
    runners: dict[tuple[Any, ...], RecordingRunner] = {}

    def make(folder: Path, *, budget: int, seed: int = 0, num_rows: int = 6, **options: Any) -> Planner:
        key = (folder, num_rows, json.dumps(options, sort_keys=True))
        if key not in runners:
            base = load_runner(
                ExecutorOptions(
                    model=str(folder),
                    device="cpu",
                    threads=1,
                    max_num_seqs=num_rows,
                    max_num_batched_tokens=512,
                    **options,
                )
            )
            runner = runners[key] = RecordingRunner(
                base.model, base.layout, max_num_seqs=num_rows, max_num_batched_tokens=512
            )
            # What was never stored may never be seen.
            for k_cache, v_cache in runner._kv:
                # In int8, bytes whose scales are NaN.
                nothing = -1 if k_cache.dtype == torch.int8 else math.nan
                k_cache.fill_(nothing)
                v_cache.fill_(nothing)
        runners[key].reset()
        return Planner(runners[key], budget=budget, num_rows=num_rows, seed=seed)

    return make
