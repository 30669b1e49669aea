"""Where the time of a model's step goes on CPUs: linear layers, attention, and everything else.

    python tests/bench/cpu_step.py [--model FOLDER] [--prompt 1024] [--decode 32] [--context 512] [--repeats 5]

A prompt of --prompt tokens is computed in one step, of which the last token samples; then --decode sequences of
--context tokens bring one token each. Without --model, the model has Qwen2.5-0.5B's shapes and random weights.

In every repeat the following run one after the other, because a machine's speed moves: the step as the executor runs
it; the same step one operation at a time with a clock around each; and all linear layers alone, natively (the MLP's
activation is part of one) and by oneDNN on weights that it packed. "efficiency" is the time of the faster of these two
over that of the step. Prints medians, and asserts nothing about times. All logits are computed, but in "greedy", where
the head computes only those that can be the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report import circumstances, table
from torch import Tensor

from pagoda.executor.kv_cache import KvLayout, allocate, split_layers
from pagoda.executor.loader import Model, load_model
from pagoda.executor.models.decoder import Decoder, KvLayer
from pagoda.kernels.attention import AttentionBatch
from pagoda.kernels.cpu.linear import CpuLinear
from pagoda.kernels.sampling import SamplingTensors

QWEN2_5_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "dtype": "bfloat16",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
BLOCK_SIZE = 16
Linear = Callable[[Tensor], Tensor]


class Step:
    """Sequences of `context` tokens, the last `new` of which are computed; each one's last token samples."""

    def __init__(self, num_seqs: int, context: int, new: int) -> None:
        blocks = -(-context // BLOCK_SIZE)
        self.num_blocks = num_seqs * blocks
        tables = torch.arange(self.num_blocks, dtype=torch.int32).view(num_seqs, blocks)
        positions = torch.arange(context - new, context)
        slots = tables[:, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        self.token_ids = torch.arange(num_seqs * new) % 1000
        self.positions = positions.repeat(num_seqs)
        self.sampled = torch.arange(1, num_seqs + 1) * new - 1
        self.batch = AttentionBatch(
            cu_seqlens_q=torch.arange(num_seqs + 1, dtype=torch.int32) * new,
            seq_lens=torch.full((num_seqs,), context, dtype=torch.int32),
            block_tables=tables,
            slot_mapping=slots.flatten(),
        )

    def run(
        self,
        model: Model,
        decoder: Decoder,
        kv: Sequence[KvLayer],
        watch: Stopwatch | None = None,
        rows: SamplingTensors | None = None,
    ) -> None:
        plan: Any = model.kernels.attention.plan(self.batch, BLOCK_SIZE)
        if watch:
            plan = watch.around(plan, "attention", "store", "attend")
        hidden = decoder.forward(self.token_ids, self.positions, kv, plan, self.sampled)
        if rows is None or decoder.shortlist(hidden, rows) is None:
            decoder.logits(hidden)

    def greedy(self) -> SamplingTensors:
        zeros = torch.zeros(len(self.sampled))
        return SamplingTensors(zeros, zeros + 1, zeros.int(), zeros, zeros.long(), zeros.long())


class Stopwatch:
    """Adds up the time of named parts, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, thing: Any, part: str, *methods: str) -> Any:
        """`thing` with a clock around the methods."""
        return _Timed(thing, {name: self.timed(getattr(thing, name), part) for name in methods})

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds[part] += time.perf_counter() - started
            return result

        return run


class _Timed:
    def __init__(self, thing: Any, methods: dict[str, Callable[..., Any]]) -> None:
        self._thing = thing
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)


def one_by_one(model: Model, watch: Stopwatch) -> Decoder:
    """The decoder, a clock around its linear layers."""
    weights = model.decoder.weights
    layers = [
        replace(
            layer, **{name: watch.timed(getattr(layer, name), "linear") for name in ("qkv", "o", "gate_up", "down")}
        )
        for layer in weights.layers
    ]
    timed = replace(weights, layers=layers, head=watch.timed(weights.head, "linear"))
    return Decoder(model.decoder.config, timed, model.max_model_len, model.kernels.elementwise)


def native_linears(model: Model) -> list[CpuLinear]:
    """Those of all layers, and the head."""
    weights = model.decoder.weights
    linears = [each for layer in weights.layers for each in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return [each for each in (*linears, weights.head) if isinstance(each, CpuLinear)]


def onednn_linears(shapes: Sequence[tuple[int, int]]) -> list[Linear]:
    packed = [torch.ops.mkldnn._reorder_linear_weight(torch.randn(n, k).bfloat16(), None) for n, k in shapes]
    return [lambda x, w=weight: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for weight in packed]


def pass_of(linears: Sequence[Linear], inputs: Sequence[Tensor]) -> None:
    for linear, x in zip(linears, inputs, strict=True):
        linear(x)


@torch.inference_mode()
def measure(name: str, step: Step, model: Model, onednn: Sequence[Linear], repeats: int) -> list[str]:
    config = model.decoder.config
    num_layers, dtype = len(config.layers), model.decoder.dtype
    layout = KvLayout(step.num_blocks, BLOCK_SIZE, num_layers, config.num_kv_heads, config.head_dim, dtype)
    kv = split_layers(allocate(layout, torch.device("cpu")).zero_())
    native = native_linears(model)
    num_tokens, num_sampled = len(step.token_ids), len(step.sampled)
    by_width = {each.in_features: torch.randn(num_tokens, each.in_features).bfloat16() for each in native}
    inputs = [by_width[each.in_features] for each in native[:-1]] + [by_width[config.hidden_size][:num_sampled]]
    columns: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        watch = Stopwatch()
        clocked = one_by_one(model, watch)
        elapsed = {
            "step": seconds(step.run, model, model.decoder, kv),
            "greedy": seconds(step.run, model, model.decoder, kv, None, step.greedy()),
            "one by one": seconds(step.run, model, clocked, kv, watch),
            "native": seconds(pass_of, native, inputs),
            "oneDNN": seconds(pass_of, onednn, inputs),
        }
        if not repeat:  # the first one warms up
            continue
        for part, taken in (elapsed | watch.seconds).items():
            columns[part].append(taken)
        columns["rest"].append(elapsed["one by one"] - watch.seconds["linear"] - watch.seconds["attention"])
        fastest = min(elapsed["native"], elapsed["oneDNN"])
        columns["efficiency"].append(fastest / elapsed["step"])
        columns["greedy efficiency"].append(fastest / elapsed["greedy"])
    operations = 2 * sum(math.prod(each.weight_shape) * len(x) for each, x in zip(native, inputs, strict=True))
    step_s = statistics.median(columns["step"])
    parts = ("step", "greedy", "one by one", "linear", "attention", "rest", "native", "oneDNN")
    return [
        name,
        *(f"{statistics.median(columns[part]) * 1e3:.1f}" for part in parts),
        *(f"{statistics.median(columns[share]):.0%}" for share in ("efficiency", "greedy efficiency")),
        f"{operations / step_s / 1e12:.2f}",
    ]


def seconds(run: Callable[..., None], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


@contextlib.contextmanager
def model_folder(given: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(QWEN2_5_05B))
        yield Path(given or folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{circumstances()}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    with model_folder(args.model) as folder:
        model = load_model(folder, device=torch.device("cpu"), dtype="bfloat16", dummy=True, kernels="cpu")
    onednn = onednn_linears([each.weight_shape for each in native_linears(model)])
    steps = {
        f"prompt of {args.prompt}": Step(1, args.prompt, args.prompt),
        f"{args.decode} decoding at {args.context}": Step(args.decode, args.context, 1),
    }
    header = ["ms", "step", "greedy", "one by one", "linear", "attention", "rest", "native linear", "oneDNN linear"]
    print(
        table(
            [*header, "efficiency", "greedy", "TFLOP/s"],
            [measure(name, step, model, onednn, args.repeats) for name, step in steps.items()],
        )
    )


if __name__ == "__main__":
    main()
