"""How long a request waits between two executors: from its first token, which the one that computed the prompt samples
with its last chunk, to the second, which the one that goes on samples in its first step.

    python tests/bench/handover.py [--prompt-len 2040] [--repeats 30]

The bundled model, real processes, one request at a time; beside it the same gap on one executor, where nothing moves.
The scheduler's own stream is measured, without tokenizer and gateway. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import circumstances, table

from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc

START_TIMEOUT_S = 120.0
VOCAB = 1000
POOLS = ["--prefill-executors", "1", "--decode-executors", "1", "--max-local-prefill-tokens", "1"]
WAYS = {
    "one executor": [],
    "1 + 1, shared memory": POOLS,
    "1 + 1, TCP": [*POOLS, "--transfer", "tcp"],
}


@contextmanager
def serving(flags: list[str]) -> Iterator[str]:
    """The scheduler's address of a `pagoda serve`."""
    folder = Path(tempfile.mkdtemp(prefix="pagoda-"))
    command = [
        sys.executable,
        "-m",
        "pagoda.cli.main",
        "serve",
        "--port",
        str(_free_port()),
        "--run-dir",
        str(folder),
        *flags,
    ]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (services := _ready(folder / "state.json")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "output").read_text())
            time.sleep(0.05)
        yield services["scheduler"]
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(state: Path) -> dict[str, str]:
    """Service -> address; {} until all are ready."""
    services = json.loads(state.read_text())["services"] if state.exists() else []
    return {each["name"]: each["address"] for each in services} if all(each["ready"] for each in services) else {}


def gaps_ms(address: str, prompt_len: int, repeats: int) -> tuple[list[float], int]:
    """From the first to the second token of each request; how many requests moved."""
    rng = random.Random(0)
    gaps = []
    with open_blocking_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        for number in range(repeats + 2):
            request = scheduler_pb2.SchedulerGenerateRequest(
                prompt_token_ids=[rng.randrange(100, VOCAB) for _ in range(prompt_len)],
                sampling=common_pb2.SamplingParams(max_tokens=3, temperature=0, ignore_eos=True),
            )
            times = [time.perf_counter() for answer in stub.Generate(request) for _ in answer.token_ids]
            if number >= 2:  # the first ones open connections
                gaps.append((times[1] - times[0]) * 1e3)
        state = stub.GetState(scheduler_pb2.GetStateRequest()).state
    return gaps, state.moves_done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-len", type=int, default=2040)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    print(circumstances())
    lines = []
    for way, flags in WAYS.items():
        with serving(flags) as address:
            gaps, num_moved = gaps_ms(address, args.prompt_len, args.repeats)
        ordered = sorted(gaps)
        p90 = ordered[-(-len(ordered) * 9 // 10) - 1]
        lines.append([way, str(num_moved), f"{statistics.median(gaps):.2f}", f"{p90:.2f}", f"{ordered[-1]:.2f}"])
    print(table(["way", "moved", "first to second token, ms: p50", "p90", "longest"], lines))


if __name__ == "__main__":
    main()
