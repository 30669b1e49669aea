"""Speed of the executor's runner on this machine's GPU: decoding and prompts, from plan to tokens.

    make gpu-bench                                    # or: python tests/gpu/bench_runner.py --json FILE

A model with the shapes of Llama 3.1 8B and random weights runs plans as a scheduler sends them, two in flight.
Columns of decoding:

step     time per step, plans applied and tokens on the host
graph    time of the graph alone, replayed with nothing in between; step - graph is what the host's part costs
launch   time that the host takes to launch a step; hidden as long as it is below `graph`
roofline share of the bandwidth of a copy on this device, of which reading weights, keys and values is the least
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import triton
from torch import Tensor

from pagoda.executor.device.graph import CudaGraphs
from pagoda.executor.kernels import select_kernels
from pagoda.executor.kv_cache import KvLayout
from pagoda.executor.loader import Model
from pagoda.executor.models.decoder import Decoder
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.weights import build_weights
from pagoda.executor.runner import Runner
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 128009,
}
DTYPE = torch.bfloat16
BLOCK_SIZE = 16
MAX_BATCHED_TOKENS = 8192
DECODE_STEPS = 100
SAMPLING = step_pb2.RowSampling(temperature=0.8, top_p=0.95, seed=1)


@dataclass(frozen=True)
class Row:
    """One line of the table; times in microseconds."""

    case: str
    step_us: float
    rate: float
    unit: str
    share: float
    graph_us: float | None = None
    launch_us: float | None = None


def main() -> None:
    """Runs everything; exits with 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-bench-runner.json"), help="where the figures go")
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("the bench needs a GPU: torch finds none")
    bandwidth, flops = _bandwidth(), _flops()
    model = _model(options.layers)
    machine = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; {options.layers} "
        f"layers, {model.decoder.weights.num_bytes / 1e9:.1f} GB; copy {bandwidth / 1e12:.2f} TB/s, "
        f"matrix product {flops / 1e12:.0f} TFLOP/s"
    )
    print(f"{machine}\n\n| case | step us | graph us | launch us | rate | share |\n|---|---:|---:|---:|---:|---:|")
    rows = []
    cases: list[Callable[[], Row]] = [
        functools.partial(_decode, model, batch_size, context, bandwidth)
        for batch_size, context in ((1, 1024), (32, 1024), (256, 1024), (32, 7000))
    ]
    cases += [functools.partial(_prefill, model, num_tokens, flops) for num_tokens in (512, 2048, 8192)]
    for case in cases:
        row = case()
        rows.append(row)
        graph, launch = (f"{each:,.0f}" if each else "" for each in (row.graph_us, row.launch_us))
        print(
            f"| {row.case} | {row.step_us:,.0f} | {graph} | {launch} | {row.rate:,.0f} {row.unit} | {row.share:.0%} |",
            flush=True,
        )
    options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def _decode(model: Model, batch_size: int, context: int, bandwidth: float) -> Row:
    row_blocks = -(-(context + 2 * DECODE_STEPS) // BLOCK_SIZE)
    runner = _runner(model, batch_size, batch_size * row_blocks)
    blocks = np.random.default_rng(0).permutation(batch_size * row_blocks).reshape(batch_size, row_blocks)
    first = step_pb2.StepPlan(step=1)
    for row in range(batch_size):
        # All but the last token count as computed: what the cache holds does not change the time.
        first.started_rows.add(
            row=row,
            token_ids=pack_u32(np.arange(context) % 1000),
            num_computed_tokens=context - 1,
            block_ids=pack_u32(blocks[row]),
            sampling=SAMPLING,
        )
    runner.execute(first)
    step_us, launch_us = _pipelined(runner)
    assert runner._device_steps
    graph = runner._device_steps._graphs[batch_size]
    graph_us = _device_us(graph.replay, 20)
    layout = runner.layout
    kv_bytes = batch_size * (context + DECODE_STEPS) * layout.block_bytes / BLOCK_SIZE
    weights = model.decoder.weights
    # Of the embedding, a step reads a few rows only.
    num_bytes = weights.num_bytes - weights.embedding.nbytes + kv_bytes
    return Row(
        f"decode, batch {batch_size}, context {context}",
        step_us,
        batch_size / step_us * 1e6,
        "tokens/s",
        num_bytes / (step_us / 1e6) / bandwidth,
        graph_us,
        launch_us,
    )


def _pipelined(runner: Runner) -> tuple[float, float]:
    """Microseconds per step with two plans in flight; and, of those, to launch one."""
    in_flight = deque([runner.launch(step_pb2.StepPlan(step=2))])
    launch_times, ends = [], []
    for step in range(3, 3 + DECODE_STEPS):
        started = time.perf_counter_ns()
        in_flight.append(runner.launch(step_pb2.StepPlan(step=step)))
        launch_times.append(time.perf_counter_ns() - started)
        in_flight.popleft().finish()
        ends.append(time.perf_counter_ns())
    in_flight.popleft().finish()
    # The first few still warm up.
    return (ends[-1] - ends[9]) / (len(ends) - 10) / 1e3, statistics.median(launch_times) / 1e3


def _prefill(model: Model, num_tokens: int, flops: float) -> Row:
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    runner = _runner(model, 1, num_blocks, graphs=False)
    times = []
    for step in range(1, 8):
        plan = step_pb2.StepPlan(step=step, chunk_rows=pack_u32([0]), chunk_num_tokens=pack_u32([num_tokens]))
        plan.started_rows.add(
            row=0,
            token_ids=pack_u32(np.arange(num_tokens) % 1000),
            block_ids=pack_u32(np.arange(num_blocks)),
            sampling=SAMPLING,
        )
        if step > 1:
            plan.ended_rows = pack_u32([0])
        started = time.perf_counter_ns()
        runner.execute(plan)
        times.append((time.perf_counter_ns() - started) / 1e3)
    us = statistics.median(times[2:])
    config, weights = model.decoder.config, model.decoder.weights
    # The head is for the last token only.
    parameters = (weights.num_bytes - weights.embedding.nbytes - weights.head.num_bytes) / DTYPE.itemsize
    attention = 2 * config.num_heads * config.head_dim * num_tokens**2 * len(config.layers)
    operations = 2 * parameters * num_tokens + attention
    share = operations / (us / 1e6) / flops
    return Row(f"prompt of {num_tokens} tokens", us, num_tokens / us * 1e6, "tokens/s", share)


def _runner(model: Model, num_rows: int, num_blocks: int, *, graphs: bool = True) -> Runner:
    config = model.decoder.config
    layout = KvLayout(num_blocks, BLOCK_SIZE, len(config.layers), config.num_kv_heads, config.head_dim, DTYPE)
    runner = Runner(
        model,
        layout,
        max_num_seqs=num_rows,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS, num_rows),
        make_graph=CudaGraphs(),
    )
    for part in (each for layer in runner._kv for each in layer):
        part.zero_()
    assert runner._device_steps
    with torch.inference_mode():
        if graphs:
            runner._device_steps.capture([num_rows])
    return runner


def _model(num_layers: int) -> Model:
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(CONFIG | {"num_hidden_layers": num_layers}))
        config = parse_model_config(JsonConfig.read(path))
    kernels = select_kernels(config, device=device, dtype=DTYPE, block_size=BLOCK_SIZE, name="triton")

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        return torch.empty(shape, dtype=DTYPE, device=device).normal_(std=shape[1] ** -0.5)

    weights = build_weights(
        config, read, DTYPE, device, linear=kernels.linear, gate_up=kernels.gate_up, head=kernels.head
    )
    max_model_len = config.max_position
    decoder = Decoder(config, weights, max_model_len, kernels.elementwise, kernels.layers)
    return Model(decoder, kernels, "bench", (), max_model_len)


def _bandwidth() -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (_device_us(lambda: target.copy_(source), 10) / 1e6)


def _flops() -> float:
    """Operations per second of a large matrix product."""
    size = 8192
    a, b = torch.randn((2, size, size), device="cuda").to(DTYPE)
    return 2 * size**3 / (_device_us(lambda: torch.matmul(a, b), 10) / 1e6)


def _device_us(call: Callable[[], object], repeats: int) -> float:
    """Microseconds per call on the device, one after the other."""
    call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / repeats


if __name__ == "__main__":
    main()
