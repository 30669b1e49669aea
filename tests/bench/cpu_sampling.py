"""How long drawing a step's tokens takes on CPUs: the native sampler beside torch's.

    python tests/bench/cpu_sampling.py [--rows 1 32 256] [--vocab-sizes 32000 151936] [--seconds 1]

Logits are normally distributed: with a standard deviation of 3 a nucleus of 0.9 has some thousands of 151,936 tokens;
with 0.3, as of a model that knows nothing, most of them. In every round each runs once, so that both meet the machine
at the same speed. Prints medians, and how many times longer torch takes: the median over rounds, and the least. Asserts
nothing about times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from report import circumstances, table

from pagoda.executor.batch import SamplingRows
from pagoda.executor.sampler import sample, sample_with_torch
from pagoda.kernels.cpu.library import best_level, library

PEAKED, FLAT = 3.0, 0.3
# Standard deviation of logits, and parameters.
CASES: dict[str, tuple[float, dict[str, float]]] = {
    "greedy": (PEAKED, {"temperature": 0.0}),
    "temperature": (PEAKED, {}),
    "top_k 50": (PEAKED, {"top_k": 50}),
    "top_p 0.9, peaked": (PEAKED, {"top_p": 0.9}),
    "top_p 0.9, flat": (FLAT, {"top_p": 0.9}),
    "all three": (PEAKED, {"top_k": 50, "top_p": 0.9, "min_p": 0.01}),
}
LEAST_ROUNDS, MOST_ROUNDS = 3, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line, unless fewer rounds than 3 fit")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    assert library() is not None, "no native kernels"
    print(f"{circumstances()}; torch {torch.__version__}, {arguments.threads} threads; {best_level()}\n")
    lines = []
    for vocab_size in arguments.vocab_sizes:
        for num_rows in arguments.rows:
            noise = torch.randn(num_rows, vocab_size)
            for name, (deviation, parameters) in CASES.items():
                line = measure(noise * deviation, same_rows(num_rows, **parameters), arguments.seconds)
                lines.append([f"{vocab_size:,}", str(num_rows), name, *line])
    header = ["vocabulary", "rows", "", "native us", "us per row", "torch us", "torch / native (least)"]
    print(table(header, lines))


@torch.inference_mode()
def measure(logits: torch.Tensor, rows: SamplingRows, budget_s: float) -> list[str]:
    """Cells of the table."""
    times: dict[Any, list[float]] = {sample: [], sample_with_torch: []}
    started = time.perf_counter()
    for rounds in range(MOST_ROUNDS):
        if rounds >= LEAST_ROUNDS and time.perf_counter() - started > budget_s:
            break
        for run, taken in times.items():
            begun = time.perf_counter()
            run(logits, rows)
            taken.append(time.perf_counter() - begun)
    # The first round warms up.
    native, plain = times[sample][1:], times[sample_with_torch][1:]
    ratios = [theirs / ours for ours, theirs in zip(native, plain, strict=True)]
    median = statistics.median(native) * 1e6
    return [
        f"{median:,.0f}",
        f"{median / len(logits):.1f}",
        f"{statistics.median(plain) * 1e6:,.0f}",
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f})",
    ]


def same_rows(count: int, **values: float) -> SamplingRows:
    """Rows that differ in their seeds only."""

    def column(name: str, default: float, dtype: type[np.generic]) -> Any:
        return np.full(count, values.get(name, default), dtype)

    return SamplingRows(
        temperature=column("temperature", 0.8, np.float32),
        top_p=column("top_p", 1.0, np.float32),
        top_k=column("top_k", 0, np.int64),
        min_p=column("min_p", 0.0, np.float32),
        seed=np.arange(count, dtype=np.uint64),
        position=np.zeros(count, np.int64),
    )


if __name__ == "__main__":
    main()
