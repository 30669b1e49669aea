"""How fast native paged attention is on CPUs: decoding, a prompt, and the cost of a call; beside torch's own attention.

    python tests/bench/cpu_attention.py [--repeats 7] [--heads 14] [--kv-heads 2] [--head-dim 64] [--dtype bfloat16]

Decoding reads a cache that is in no processor cache: the layers of a model take turns. Its rate is compared with what a
probe reads right before it, because a virtual machine's bandwidth moves; blocks lie one after the other, or at random
places, which memory is slower at. The cache is in the model's dtype and in int8, in turns. A prompt's operations are
those of the causal half, and are compared with a matrix product. Prints medians. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from cpu_linear import PROBE_BYTES, read_bandwidth
from report import circumstances, table
from torch import Tensor

from pagoda.executor.kv_cache import KvLayout, allocate, split_layers
from pagoda.kernels.attention import AttentionBatch, AttentionParams, AttentionPlan, head_elements
from pagoda.kernels.cpu.attention import CpuBackend
from pagoda.kernels.reference.attention import ReferenceBackend

CACHE_BYTES = 512 << 20

Cache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """Of one layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def random(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, self.head_dim, dtype=self.dtype)

    @property
    def cache_dtypes(self) -> list[torch.dtype]:
        return [self.dtype, torch.int8]

    def kv_bytes(self, tokens: int, cache_dtype: torch.dtype) -> int:
        return 2 * tokens * self.kv_heads * head_elements(self.head_dim, cache_dtype) * cache_dtype.itemsize

    def cache(
        self, backend: CpuBackend | ReferenceBackend, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> Cache:
        """Of one layer, allocated as the executor does, in which every slot holds something."""
        layout = KvLayout(num_blocks, block_size, 1, self.kv_heads, self.head_dim, dtype)
        ((k_cache, v_cache),) = split_layers(allocate(layout, torch.device("cpu")))
        num_tokens = num_blocks * block_size
        batch, _ = lay_out([(num_tokens, num_tokens)], block_size, shuffled=False)
        k, v = self.random(num_tokens, self.kv_heads), self.random(num_tokens, self.kv_heads)
        backend.plan(batch, block_size).store(k, v, k_cache, v_cache)
        return k_cache, v_cache

    def layers(self, cache: Cache, count: int) -> list[Cache]:
        """So many of a model, each of which holds what `cache` does."""
        num_blocks, block_size = cache[0].shape[:2]
        layout = KvLayout(num_blocks, block_size, count, self.kv_heads, self.head_dim, cache[0].dtype)
        whole = allocate(layout, torch.device("cpu"))
        whole.copy_(torch.stack(cache))
        return split_layers(whole)

    @property
    def params(self) -> AttentionParams:
        return AttentionParams(scale=self.head_dim**-0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = Shape(arguments.heads, arguments.kv_heads, arguments.head_dim, getattr(torch, arguments.dtype))
    print(f"{circumstances()}; torch {torch.__version__}, {arguments.threads} threads; {shape}\n")
    with torch.inference_mode():
        measure_decoding(shape, arguments.repeats)
        measure_prompts(shape, arguments.repeats)
        measure_calls(shape)


def measure_decoding(shape: Shape, repeats: int) -> None:
    probe = torch.ones(PROBE_BYTES // 8, dtype=torch.float64)
    lines = []
    for batch_size, context, block_size, shuffled in [
        (32, 2048, 16, False),
        (32, 2048, 16, True),
        (32, 2048, 64, True),
        (1, 2048, 16, True),
        (32, 128, 16, True),
    ]:
        batch, num_blocks = lay_out([(context, 1)] * batch_size, block_size, shuffled)
        q, k = shape.random(batch_size, shape.heads), shape.random(batch_size, shape.kv_heads)
        subjects: list[tuple[str, torch.dtype, AttentionPlan, list[Cache]]] = []
        backends: list[CpuBackend | ReferenceBackend] = [CpuBackend()]
        if block_size == 16 and shuffled:
            backends.append(ReferenceBackend())
        for backend, dtype in itertools.product(backends, shape.cache_dtypes):
            layers = max(2, CACHE_BYTES // shape.kv_bytes(batch_size * context, shape.dtype))
            caches = shape.layers(shape.cache(backend, num_blocks, block_size, dtype), min(layers, 64))
            subjects.append((backend.name, dtype, backend.plan(batch, block_size), caches))
        attended: list[list[float]] = [[] for _ in subjects]
        stored: list[list[float]] = [[] for _ in subjects]
        bandwidths = []
        for _ in range(repeats):
            bandwidths.append(read_bandwidth(probe))
            for i, (_, _, plan, caches) in enumerate(subjects):
                stores, attends = [], []
                for k_cache, v_cache in caches:
                    stores.append(seconds(lambda: plan.store(k, k, k_cache, v_cache)))  # noqa: B023
                    attends.append(seconds(lambda: plan.attend(q, k_cache, v_cache, shape.params)))  # noqa: B023
                stored[i].append(statistics.median(stores))
                attended[i].append(statistics.median(attends))
        for i, (name, dtype, _, _) in enumerate(subjects):
            num_bytes, taken = shape.kv_bytes(batch_size * context, dtype), statistics.median(attended[i])
            shares = [num_bytes / each / bandwidth for each, bandwidth in zip(attended[i], bandwidths, strict=True)]
            whole = attended[i // len(shape.cache_dtypes) * len(shape.cache_dtypes)]
            gain = statistics.median(a / b for a, b in zip(whole, attended[i], strict=True))
            lines.append(
                [
                    name,
                    str(dtype).removeprefix("torch."),
                    str(batch_size),
                    str(context),
                    f"{block_size}, {'shuffled' if shuffled else 'in order'}",
                    f"{statistics.median(stored[i]) * 1e6:.0f}",
                    f"{taken * 1e3:.3f}",
                    f"{gain:.2f}",
                    f"{num_bytes / taken / 1e9:.0f}",
                    f"{statistics.median(bandwidths) / 1e9:.0f}",
                    f"{statistics.median(shares):.0%} ({max(shares):.0%})",
                ]
            )
    header = [*("", "cache", "batch", "context", "blocks", "store us", "attend ms", "times as fast")]
    header += ["GB/s", "probe GB/s", "share (best)"]
    print(f"Decoding, one layer:\n\n{table(header, lines)}\n")


def measure_prompts(shape: Shape, repeats: int) -> None:
    lines = []
    for length in (512, 4096):
        batch, num_blocks = lay_out([(length, length)], 16, shuffled=True)
        backend = CpuBackend()
        q = shape.random(length, shape.heads)
        plan = backend.plan(batch, 16)
        whole_q, whole_k = shape.random(1, shape.heads, length), shape.random(1, shape.kv_heads, length)
        a, b = (torch.randn(1024, 1024, dtype=shape.dtype) for _ in range(2))
        half = 2.0 * shape.heads * shape.head_dim * length * (length + 1)
        subjects: dict[str, tuple[Callable[[], object], float]] = {
            "scaled_dot_product_attention": (
                lambda: F.scaled_dot_product_attention(whole_q, whole_k, whole_k, is_causal=True, enable_gqa=True),  # noqa: B023
                half,
            ),
            "matrix product": (lambda: a @ b, 2.0 * 1024**3),  # noqa: B023
        }
        for dtype in shape.cache_dtypes:
            attend = partial(plan.attend, q, *shape.cache(backend, num_blocks, 16, dtype), shape.params)
            subjects[f"native, {str(dtype).removeprefix('torch.')} cache"] = attend, half
        times: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(repeats):
            for name, (run, _) in subjects.items():
                times[name].append(seconds(run))
        for name, (_, operations) in subjects.items():
            taken = statistics.median(times[name])
            lines.append([name, str(length), f"{taken * 1e3:.2f}", f"{operations / taken / 1e12:.2f}"])
    print(f"A prompt, one layer:\n\n{table(['', 'tokens', 'ms', 'TFLOP/s'], lines)}\n")


def measure_calls(shape: Shape, calls: int = 2000) -> None:
    backend = CpuBackend()
    batch, num_blocks = lay_out([(64, 1)], 16, shuffled=False)
    k_cache, v_cache = shape.cache(backend, num_blocks, 16, shape.dtype)
    q, k = shape.random(1, shape.heads), shape.random(1, shape.kv_heads)
    plan = backend.plan(batch, 16)

    def per_call(run: Callable[[], object]) -> str:
        return f"{statistics.median(seconds(run) for _ in range(calls)) * 1e6:.1f}"

    lines = [
        ["attend", per_call(lambda: plan.attend(q, k_cache, v_cache, shape.params))],
        ["store", per_call(lambda: plan.store(k, k, k_cache, v_cache))],
        ["plan and attend", per_call(lambda: backend.plan(batch, 16).attend(q, k_cache, v_cache, shape.params))],
    ]
    print(f"One sequence, context 64:\n\n{table(['call', 'us'], lines)}")


def lay_out(lens: list[tuple[int, int]], block_size: int, shuffled: bool) -> tuple[AttentionBatch, int]:
    """A step and its number of blocks; lens: (tokens in the cache after the step, new tokens of the step)."""
    counts = [-(-n // block_size) for n, _ in lens]
    ids: Iterator[int] = iter((torch.randperm if shuffled else torch.arange)(sum(counts)).tolist())
    tables = [list(itertools.islice(ids, count)) for count in counts]
    width = max(counts)
    slots = [
        table[p // block_size] * block_size + p % block_size
        for table, (n, new) in zip(tables, lens, strict=True)
        for p in range(n - new, n)
    ]
    batch = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *itertools.accumulate(new for _, new in lens)], dtype=torch.int32),
        seq_lens=torch.tensor([n for n, _ in lens], dtype=torch.int32),
        block_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
    )
    return batch, sum(counts)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
