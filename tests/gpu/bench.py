"""Speed of the Triton kernels on this machine's GPU: one table on standard output, and the same as JSON in a file.

    make gpu-bench                                    # or: python tests/gpu/bench.py --json FILE

Each kernel runs from a captured graph, over inputs that together exceed the L2 cache several times, so that neither
launching nor a warm cache is measured. Attention is compared with what the same device does in the same run: decoding
with the bandwidth of a copy, prompts with the rate of a matrix product.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import triton
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.sampling import SamplingTensors
from pagoda.kernels.triton.activation import silu_and_mul
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.norm import add_rms_norm
from pagoda.kernels.triton.sampling import sample

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
DTYPE = torch.bfloat16
PARAMS = AttentionParams(HEAD_DIM**-0.5)
VOCAB_SIZE = 151936
HIDDEN_SIZE, MLP_SIZE = 4096, 14336

# Inputs of one measurement take at least this; the largest L2 caches have 126 MB.
_COLD_BYTES = 512 << 20
_MAX_CACHE_BYTES = 24 << 30


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kernel: str
    case: str
    microseconds: float
    """Median of one call."""

    rate: float
    unit: str
    share: float | None = None
    """Of the copy's bandwidth or the matrix product's rate on this device."""


def main() -> None:
    """Runs everything; exits with 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-bench.json"), help="where the figures go")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu-bench needs a GPU: torch finds none")
    rows = []
    print(f"{_machine()}\n\n| kernel | case | us | rate | share |\n|---|---|---:|---:|---:|", flush=True)
    for row in _measure_all():
        rows.append(row)
        share = "" if row.share is None else f"{row.share:.0%}"
        print(
            f"| {row.kernel} | {row.case} | {row.microseconds:,.1f} | {row.rate:,.0f} {row.unit} | {share} |",
            flush=True,
        )
    options.json.write_text(json.dumps({"machine": _machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def _measure_all() -> Iterator[Row]:
    copy, product = _copy(), _product()
    yield copy
    yield product
    for dtype in (DTYPE, torch.float8_e4m3fn):
        for batch_size in (1, 32, 64, 256):
            for context in (1024, 4096, 16384):
                if row := _decode(batch_size, context, dtype, deterministic=False, copy=copy):
                    yield row
    for batch_size, context in ((1, 1024), (1, 4096), (64, 4096)):
        if row := _decode(batch_size, context, DTYPE, deterministic=True, copy=copy):
            yield row
    for length in (1024, 4096, 16384):
        yield _prefill(length, product)
    for batch_size in (1, 64, 256):
        for case in ("greedy", "unfiltered", "top-k 50", "top-p 0.95", "all filters"):
            yield _sampling(batch_size, case)
    for num_tokens in (1, 256, 4096):
        yield from _rows(num_tokens, copy)


def _copy() -> Row:
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = _time([lambda: target.copy_(source)])
    return Row("copy", "1 GiB, read and written", us, 2 * source.nbytes / us / 1e3, "GB/s")


def _product() -> Row:
    size = 8192
    a, b = torch.randn((2, size, size), device="cuda").to(DTYPE)
    out = torch.empty_like(a)
    us = _time([lambda: torch.matmul(a, b, out=out)])
    return Row("matmul", f"{size} x {size} x {size}, bf16", us, 2 * size**3 / us / 1e6, "TFLOP/s")


def _decode(batch_size: int, context: int, dtype: torch.dtype, *, deterministic: bool, copy: Row) -> Row | None:
    num_bytes = 2 * batch_size * context * KV_HEADS * HEAD_DIM * dtype.itemsize
    if num_bytes > _MAX_CACHE_BYTES:
        return None
    calls = []
    for i in range(_copies(num_bytes)):
        k_cache, v_cache, batch = _paged(np.full(batch_size, context), np.ones(batch_size), dtype, seed=i)
        q = torch.randn((batch_size, HEADS, HEAD_DIM), device="cuda").to(DTYPE)
        plan = TritonBackend(deterministic=deterministic).plan(batch, BLOCK_SIZE)
        calls.append(functools.partial(plan.attend, q, k_cache, v_cache, PARAMS))
    us = _time(calls)
    rate = num_bytes / us / 1e3
    name = f"decode attention, {'fp8' if dtype != DTYPE else 'bf16'} cache{', deterministic' if deterministic else ''}"
    return Row(name, f"batch {batch_size}, context {context}", us, rate, "GB/s", rate / copy.rate)


def _prefill(length: int, product: Row) -> Row:
    k_cache, v_cache, batch = _paged(np.array([length]), np.array([length]), DTYPE, seed=0)
    q = torch.randn((length, HEADS, HEAD_DIM), device="cuda").to(DTYPE)
    plan = TritonBackend().plan(batch, BLOCK_SIZE)
    us = _time([functools.partial(plan.attend, q, k_cache, v_cache, PARAMS)])
    # Two products over the half of the matrix that is not masked.
    rate = 4 * HEADS * HEAD_DIM * length * (length + 1) / 2 / us / 1e6
    return Row("prefill attention", f"{length} tokens", us, rate, "TFLOP/s", rate / product.rate)


def _sampling(batch_size: int, case: str) -> Row:
    temperature = 0.0 if case == "greedy" else 0.8
    top_k = 50 if case in ("top-k 50", "all filters") else 0
    top_p = 0.95 if case in ("top-p 0.95", "all filters") else 1.0
    min_p = 0.05 if case == "all filters" else 0.0

    def filled(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((batch_size,), value, dtype=dtype, device="cuda")

    rows = SamplingTensors(
        temperature=filled(temperature, torch.float32),
        top_p=filled(top_p, torch.float32),
        top_k=filled(top_k, torch.int32),
        min_p=filled(min_p, torch.float32),
        seed=torch.arange(batch_size, device="cuda"),
        position=filled(100, torch.int64),
    )
    calls = []
    for _ in range(min(8, _copies(batch_size * VOCAB_SIZE * 4))):
        # As peaked as a language model's.
        logits = torch.randn((batch_size, VOCAB_SIZE), device="cuda") * 3
        calls.append(functools.partial(sample, logits, rows))
    us = _time(calls)
    return Row(
        "sampling", f"{case}, batch {batch_size}, vocabulary {VOCAB_SIZE}", us, batch_size / us * 1e6, "tokens/s"
    )


def _rows(num_tokens: int, copy: Row) -> Iterator[Row]:
    case = f"{num_tokens} tokens"
    calls: list[Callable[[], object]] = []
    weight = torch.ones(HIDDEN_SIZE, device="cuda").to(DTYPE)
    num_bytes = 4 * num_tokens * HIDDEN_SIZE * DTYPE.itemsize
    for _ in range(min(64, _copies(num_bytes))):
        x, delta = torch.randn((2, num_tokens, HIDDEN_SIZE), device="cuda").to(DTYPE)
        calls.append(functools.partial(add_rms_norm, x, delta, weight, 1e-5))
    yield _row("add and norm", case, _time(calls), num_bytes, copy)

    num_bytes = 3 * num_tokens * MLP_SIZE * DTYPE.itemsize
    calls = []
    for _ in range(min(64, _copies(num_bytes))):
        gate_up = torch.randn((num_tokens, 2 * MLP_SIZE), device="cuda").to(DTYPE)
        calls.append(functools.partial(silu_and_mul, gate_up))
    yield _row("silu and multiply", case, _time(calls), num_bytes, copy)

    num_bytes = 2 * num_tokens * (HEADS + 2 * KV_HEADS) * HEAD_DIM * DTYPE.itemsize
    calls = []
    for i in range(min(64, _copies(num_bytes))):
        k_cache, v_cache, batch = _paged(np.array([num_tokens]), np.array([num_tokens]), DTYPE, seed=i)
        qkv = torch.randn((num_tokens, HEADS + 2 * KV_HEADS, HEAD_DIM), device="cuda").to(DTYPE)
        cos = sin = torch.full((num_tokens, HEAD_DIM // 2), 0.5**0.5, device="cuda")
        plan = TritonBackend().plan(batch, BLOCK_SIZE)
        calls.append(functools.partial(plan.rope_and_store, qkv, cos, sin, k_cache, v_cache, PARAMS))
    yield _row("rope and store", case, _time(calls), num_bytes, copy)


def _row(kernel: str, case: str, us: float, num_bytes: int, copy: Row) -> Row:
    rate = num_bytes / us / 1e3
    return Row(kernel, case, us, rate, "GB/s", rate / copy.rate)


def _paged(
    seq_lens: np.ndarray, num_new: np.ndarray, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, AttentionBatch]:
    """Caches of as many blocks as the sequences need, in random order, and their batch."""
    counts = -(-seq_lens // BLOCK_SIZE)
    num_blocks = int(counts.sum())
    order = np.random.default_rng(seed).permutation(num_blocks).astype(np.int32)
    tables = np.zeros((len(seq_lens), int(counts.max())), np.int32)
    tables[np.arange(tables.shape[1]) < counts[:, None]] = order
    lengths = HostLengths(np.concatenate(([0], np.cumsum(num_new))).astype(np.int32), seq_lens.astype(np.int32))
    positions = np.concatenate([np.arange(n - new, n) for n, new in zip(seq_lens, num_new.astype(int), strict=True)])
    rows = np.repeat(np.arange(len(seq_lens)), num_new.astype(int))
    slots = tables[rows, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    batch = AttentionBatch(
        cu_seqlens_q=torch.from_numpy(lengths.cu_seqlens_q).cuda(),
        seq_lens=torch.from_numpy(lengths.seq_lens).cuda(),
        block_tables=torch.from_numpy(tables).cuda(),
        slot_mapping=torch.from_numpy(slots).cuda(),
        host=lengths,
    )
    caches = [torch.empty((num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), dtype=dtype, device="cuda") for _ in "kv"]
    for cache in caches:
        for blocks in cache.split(4096):
            blocks.copy_(torch.randn(blocks.shape, device="cuda"))
    return caches[0], caches[1], batch


def _copies(num_bytes: int) -> int:
    """Sets of inputs that are needed so that none is in the cache when its turn comes."""
    return max(1, min(64, -(-_COLD_BYTES // num_bytes)))


def _time(calls: Sequence[Callable[[], object]], repeats: int = 9) -> float:
    """Median time of one call in microseconds; all calls are captured in one graph, which is replayed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


@functools.cache
def _machine() -> str:
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}, "
        f"triton {triton.__version__}"
    )


if __name__ == "__main__":
    main()
