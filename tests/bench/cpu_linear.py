"""How long one pass over all linear layers of a small model takes on CPUs: native kernels beside torch's.

    python tests/bench/cpu_linear.py [--rows 1 4 8 32 256 1024] [--paths native_bfloat16 native_int4 ...] [--repeats 5]

The model has Qwen2.5-0.5B's shapes and random weights: 24 layers of qkv, o, gate and up, down, and the head, 988 MB in
bfloat16. In every repeat each path runs once, one after the other, with a probe of the memory's read bandwidth before
it, because a virtual machine's bandwidth moves. Prints medians: the time, the rate of weights read as a share of what
the probe read, and operations per second. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from report import circumstances, table
from torch import Tensor

from pagoda.kernels.cpu.library import library
from pagoda.kernels.cpu.linear import CpuLinear, Storage

NUM_LAYERS = 24
HIDDEN, INTERMEDIATE, QKV, VOCABULARY = 896, 4864, 1152, 151_936
LAYER_SHAPES = [(QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
SHAPES = [*LAYER_SHAPES * NUM_LAYERS, (VOCABULARY, HIDDEN)]
PROBE_BYTES = 256 << 20

Layer = Callable[[Tensor], Tensor]


class Path(NamedTuple):
    """One way to compute all layers."""

    layers: Sequence[Layer]
    num_bytes: int
    dtype: torch.dtype
    pack_s: float


def native(weights: Sequence[Tensor], storage: Storage) -> Path:
    kernels = library()
    assert kernels is not None, "no native kernels"
    started = time.perf_counter()
    layers = [CpuLinear(kernels, weight, storage=storage) for weight in weights]
    taken = time.perf_counter() - started
    return Path(layers, sum(layer.num_bytes for layer in layers), torch.bfloat16, taken)


def native_float32(weights: Sequence[Tensor]) -> Path:
    kernels = library()
    assert kernels is not None, "no native kernels"
    layers = [CpuLinear(kernels, weight.float()) for weight in weights]
    return Path(layers, sum(layer.num_bytes for layer in layers), torch.float32, 0.0)


def torch_linear(weights: Sequence[Tensor], dtype: torch.dtype) -> Path:
    converted = [weight.to(dtype) for weight in weights]
    layers = [lambda x, w=weight: F.linear(x, w) for weight in converted]
    return Path(layers, sum(weight.nbytes for weight in converted), dtype, 0.0)


def onednn_prepacked(weights: Sequence[Tensor]) -> Path:
    started = time.perf_counter()
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    taken = time.perf_counter() - started
    layers = [lambda x, w=weight: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for weight in packed]
    return Path(layers, sum(weight.nbytes for weight in weights), torch.bfloat16, taken)


PATHS: dict[str, Callable[[Sequence[Tensor]], Path]] = {
    "torch_bfloat16": lambda weights: torch_linear(weights, torch.bfloat16),
    "onednn_bfloat16": onednn_prepacked,
    "native_bfloat16": lambda weights: native(weights, "bfloat16"),
    "native_int8": lambda weights: native(weights, "int8"),
    "native_int4": lambda weights: native(weights, "int4"),
    "torch_float32": lambda weights: torch_linear(weights, torch.float32),
    "native_float32": native_float32,
}
DEFAULT_PATHS = ["torch_bfloat16", "onednn_bfloat16", "native_bfloat16", "native_int8", "native_int4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 32, 256, 1024])
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=DEFAULT_PATHS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{circumstances()}; torch {torch.__version__}, {arguments.threads} threads\n")
    weights = random_weights()
    paths = {name: PATHS[name](weights) for name in arguments.paths}
    del weights
    probe = torch.ones(PROBE_BYTES // 8, dtype=torch.float64)
    lines = [line for rows in arguments.rows for line in measure(paths, rows, arguments.repeats, probe)]
    print(table(["rows", "path", "ms (least)", "share of bandwidth", "probe GB/s", "TOP/s"], lines))
    packing = ", ".join(f"{name} {path.pack_s:.2f} s" for name, path in paths.items() if path.pack_s)
    print(f"\npacked in: {packing}")


@torch.inference_mode()
def measure(paths: dict[str, Path], rows: int, repeats: int, probe: Tensor) -> list[list[str]]:
    """One line of the table per path."""
    inputs = {
        (dtype, width): torch.randn(rows, width).to(dtype)
        for dtype in {path.dtype for path in paths.values()}
        for width in (HIDDEN, INTERMEDIATE)
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    bandwidths: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(repeats + 1):
        for name, path in paths.items():
            bandwidth = read_bandwidth(probe)
            started = time.perf_counter()
            for layer, (_, width) in zip(path.layers, SHAPES, strict=True):
                layer(inputs[path.dtype, width])
            taken = time.perf_counter() - started
            if repeat:  # the first one warms up
                times[name].append(taken)
                bandwidths[name].append(bandwidth)
    operations = 2 * rows * sum(n * k for n, k in SHAPES)
    lines = []
    for name, path in paths.items():
        median = statistics.median(times[name])
        share = statistics.median(
            path.num_bytes / taken / bandwidth for taken, bandwidth in zip(times[name], bandwidths[name], strict=True)
        )
        lines.append(
            [
                str(rows),
                name,
                f"{median * 1e3:.1f} ({min(times[name]) * 1e3:.1f})",
                f"{share:.0%}",
                f"{statistics.median(bandwidths[name]) / 1e9:.0f}",
                f"{operations / median / 1e12:.2f}",
            ]
        )
    return lines


def read_bandwidth(memory: Tensor) -> float:
    """Bytes per second, the best of three readings."""
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        memory.sum()
        best = max(best, memory.nbytes / (time.perf_counter() - started))
    return best


def random_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, k, generator=generator) / k**0.5).bfloat16() for n, k in SHAPES]


if __name__ == "__main__":
    main()
