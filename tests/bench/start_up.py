"""How long `pagoda serve` takes until it is ready, and where that time goes.

    python tests/bench/start_up.py [MODEL ...] [--quantization none int8 int4] [--rounds 3] [--beside CHECKOUT]

Times are when a line arrives that says so, from the start of the first process. All variants take turns, because the
machine's speed changes. With --beside, the code of another checkout is timed too, with the same Python.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import circumstances, table

# What a phase is, and the line that ends it.
PHASES = {
    "command": r"^Pagoda \S+ starts",
    "executor's port": r"executor \| listening on",
    "import torch": r"executor \| loaded",  # less what loading took, as the line says
    "load": r"executor \| loaded",
    "cache, warm-up": r"executor \| warmed up",
    "register, health": r"^Ready",
}
LOADED_IN = re.compile(r"loaded .* in ([\d.]+) s")


def start(code: Path | None, arguments: list[str]) -> list[float]:
    """Seconds of each phase of one start."""
    environ = dict(os.environ)
    if code is not None:
        environ["PYTHONPATH"] = os.pathsep.join(str(code / root) for root in ("services", "kernels", "gen"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pagoda.cli.main", "serve", *arguments, "--port", str(port), "--log-level", "info"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    try:
        ends = read_ends(process, began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    return [end - before for before, end in zip([0.0, *ends], ends, strict=False)]


def read_ends(process: subprocess.Popen[str], began: float) -> list[float]:
    """When each phase ended. Raises RuntimeError, with the output, when it never did."""
    assert process.stdout is not None
    seen: dict[str, float] = {}
    output = ""
    for line in process.stdout:
        output += line
        now = time.perf_counter() - began
        for phase, pattern in PHASES.items():
            if phase not in seen and re.search(pattern, line):
                loaded = LOADED_IN.search(line)
                seen[phase] = now - float(loaded[1]) if phase == "import torch" and loaded else now
        if "register, health" in seen:
            return [seen[phase] for phase in PHASES]
    raise RuntimeError(f"it did not start:\n{output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="checkpoint folders; else the bundled")
    parser.add_argument("--quantization", nargs="+", default=["none"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    args = parser.parse_args()
    variants = {
        (str(model.name) if model else "bundled", quantization, "beside" if code else "this"): (
            code,
            [*([str(model)] if model else []), "--quantization", quantization],
        )
        for model in args.models or [None]
        for quantization in args.quantization
        for code in ([args.beside, None] if args.beside else [None])
    }
    times: dict[tuple[str, str, str], list[list[float]]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, (code, arguments) in variants.items():
            times[name].append(start(code, arguments))
    lines = [
        [
            *name,
            *(f"{statistics.median(each):.2f}" for each in zip(*starts, strict=True)),
            f"{statistics.median(map(sum, starts)):.2f}",
            f"{min(map(sum, starts)):.2f}-{max(map(sum, starts)):.2f}",
        ]
        for name, starts in times.items()
    ]
    print(circumstances())
    print(f"\nSeconds, medians of {args.rounds} starts\n")
    print(table(["model", "quantization", "code", *PHASES, "ready", "fastest-slowest"], lines))


if __name__ == "__main__":
    main()
