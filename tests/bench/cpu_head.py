"""The layer from hidden states to logits on CPUs: all logits, and only those that matter, in turns.

    python tests/bench/cpu_head.py [--top-k 20] [--rows 1 2 4 8 16 32 64] [--repeats 9]

Random weights and hidden states; greedy rows, or with --top-k. Before each product, other memory is read, so that
weights come from memory as they do behind the layers. Prints medians in ms, and how many groups of 32 tokens a row's
shortlist has on average.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from report import circumstances, table
from torch import Tensor

from pagoda.kernels.cpu.head import CpuHead
from pagoda.kernels.cpu.library import library
from pagoda.kernels.sampling import SamplingTensors

SHAPES = {"Qwen2.5-0.5B": (151_936, 896), "Llama-3.2-1B": (128_256, 2048), "15M": (32_000, 288)}
OTHER_BYTES = 120 << 20


def sampling(num_rows: int, top_k: int) -> SamplingTensors:
    zeros = torch.zeros(num_rows)
    temperature = zeros + (1.0 if top_k else 0.0)
    return SamplingTensors(temperature, zeros + 1, zeros.int() + top_k, zeros, zeros.long(), zeros.long())


def measure(name: str, head: CpuHead, num_rows: int, top_k: int, repeats: int, other: Tensor) -> list[str]:
    x, rows = torch.randn(num_rows, head.in_features).bfloat16(), sampling(num_rows, top_k)

    def milliseconds(run: Callable[[], object]) -> float:
        other.add_(1)
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3

    every, few = [], []
    for _ in range(repeats):
        every.append(milliseconds(lambda: head(x)))
        few.append(milliseconds(lambda: head.shortlist(x, rows)))
    shortlist = head.shortlist(x, rows)
    groups = float("nan") if shortlist is None else (~shortlist.logits.isneginf()).sum() / 32 / num_rows
    ratio = statistics.median(a / b for a, b in zip(every, few, strict=True))
    medians = (statistics.median(every), statistics.median(few), ratio)
    return [name, str(num_rows), *(f"{value:.2f}" for value in medians), f"{groups:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    loaded = library()
    if loaded is None:
        raise SystemExit("no native kernels: is g++ or clang++ installed?")
    print(f"{circumstances()}; {torch.get_num_threads()} threads\n")
    other = torch.zeros(OTHER_BYTES // 4)
    lines = []
    for name, shape in SHAPES.items():
        head = CpuHead(loaded, torch.randn(shape).bfloat16())
        lines += [measure(name, head, rows, args.top_k, args.repeats, other) for rows in args.rows]
    print(table(["head", "rows", "all logits", "those that matter", "times faster", "groups"], lines))


if __name__ == "__main__":
    main()
