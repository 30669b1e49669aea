"""What the scheduler costs per step between processes: ZeroMQ, protobuf, the event loop and the core together.

    python tests/bench/scheduler_roundtrip.py

A real scheduler process, an executor that takes --forward-us for every plan, and a tokenizer with one endless request
per row (roundtrip_peers.py). Measured per step, once all rows run:

    step        from one result to the next, as the executor sends them
    executor    of that, the executor's own work
    overhead    the rest: what the executor waits, beside its forward pass
    tokens      from the executor's result to the tokens at the tokenizer
    CPU         of the scheduler's main thread, and of its other threads (ZeroMQ, gRPC)

With a forward pass of 0, the scheduler still delivers the tokens of one step when the next result is there; with 1,000
it does so while the executor computes, as in practice.

And, as the floor under all that, the round trip of messages of the same sizes through a process that only sends them
back. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic_ns

import zmq
from report import circumstances, table
from scheduler_cases import summarize

ROWS = (1, 32, 256, 1024)
TRANSPORTS = ("ipc", "tcp")
DEPTHS = (1, 2)
HEADER = ("step", "executor", "overhead", "tokens", "scheduler CPU", "other threads", "bare round trip")

# [median, p99] in us, or one number.
Line = dict[str, list[float]]
Process = subprocess.Popen[str]


def measure(transport: str, depth: int, num_rows: int, num_steps: int, forward_us: int) -> Line:
    """One scheduler, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        listen = f"unix:{folder}/grpc"
        flags = ["--listen", listen, "--max-plans-in-flight", str(depth), "--log-level", "error"]
        for peer in ("executor", "tokenizer"):
            flags += [f"--{peer}-endpoint", _endpoint(transport, folder, peer)]
        with (
            _running([sys.executable, "-m", "pagoda.cli.main", "scheduler", *flags]) as scheduler,
            _peer("executor", listen, num_rows, forward_us) as executor,
            _peer("tokenizer", listen, num_rows, num_steps) as tokenizer,
        ):
            _expect(tokenizer, "begin")
            before, began_at = _cpu_ns(scheduler.pid), monotonic_ns()
            _expect(tokenizer, "end")
            after, ended_at = _cpu_ns(scheduler.pid), monotonic_ns()
            arrivals = dict(json.loads(tokenizer.communicate()[0]))
            executor.send_signal(signal.SIGTERM)
            steps = json.loads(executor.communicate()[0])
        line = _evaluate(steps, arrivals)
        num_seen = sum(began_at <= sent_at < ended_at for _, _, sent_at, _ in steps)
        line["scheduler CPU"] = [(after[0] - before[0]) / num_seen / 1000]
        line["other threads"] = [(after[1] - before[1]) / num_seen / 1000]
        line["bare round trip"] = _bounce(_endpoint(transport, folder, "bounce"), num_rows)
    return line


def _endpoint(transport: str, folder: str, name: str) -> str:
    return "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{folder}/{name}"


def _evaluate(steps: Sequence[tuple[int, int, int, int]], arrivals: dict[int, int]) -> Line:
    """steps: (step, received, sent, rows) as the executor saw them; arrivals: when the tokenizer got a step's tokens"""
    columns: dict[str, list[int]] = {"step": [], "executor": [], "overhead": [], "tokens": []}
    for (_, _, previous_sent_at, _), (step, received_at, sent_at, _) in pairwise(steps):
        if step in arrivals:
            columns["step"].append(sent_at - previous_sent_at)
            columns["executor"].append(sent_at - received_at)
            columns["overhead"].append(received_at - previous_sent_at)
            columns["tokens"].append(arrivals[step] - sent_at)
    return {name: summarize(ns)[:2] for name, ns in columns.items()}


def _bounce(endpoint: str, num_rows: int) -> list[float]:
    """Round trips of a message as long as a result of num_rows rows."""
    message, times = bytes(8 * num_rows), []
    with _peer("bounce", endpoint) as process, zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        assert process.stdout
        socket.connect(process.stdout.readline().strip())
        for _ in range(1000):
            started = monotonic_ns()
            socket.send(message)
            socket.recv()
            times.append(monotonic_ns() - started)
    return summarize(times[100:])[:2]


def _peer(*arguments: object) -> AbstractContextManager[Process]:
    script = Path(__file__).with_name("roundtrip_peers.py")
    return _running([sys.executable, str(script), *map(str, arguments)])


@contextmanager
def _running(command: Sequence[str]) -> Iterator[Process]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _expect(process: Process, word: str) -> None:
    assert process.stdout
    if (line := process.stdout.readline().strip()) != word:
        raise SystemExit(f"a peer ended before it said {word!r}; it said {line!r}")


def _cpu_ns(pid: int) -> tuple[int, int]:
    """CPU time of the main thread, and of all others."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        times[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    main_thread = times.pop(pid)
    return main_thread, sum(times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measure all so often; medians over the rounds are shown")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--steps", type=int, default=1000, help="timed steps of each measurement")
    parser.add_argument("--forward-us", type=int, default=0, help="how long the executor is busy with a step")
    args = parser.parse_args()
    print(circumstances())
    cases = [(transport, depth, n) for transport in TRANSPORTS for depth in DEPTHS for n in args.rows]
    rounds = [{case: measure(*case, args.steps, args.forward_us) for case in cases} for _ in range(args.rounds)]
    print(f"After {args.rounds} rounds: {circumstances()}\n")
    print(
        f"us per step, with a forward pass of {args.forward_us:,} us: median (p99) of {args.steps:,} steps, of which "
        "the median over the rounds; CPU is a mean.\n"
    )
    lines = []
    for case in cases:
        columns = [[each[case][name] for each in rounds] for name in HEADER]
        transport, depth, num_rows = case
        lines.append([transport, str(depth), f"{num_rows:,}", *map(_cell, columns)])
    print(table(["transport", "plans in flight", "rows", *HEADER], lines))


def _cell(rounds: Sequence[Sequence[float]]) -> str:
    """The medians over the rounds, of a median and a p99 or of one number."""
    first, *p99 = (f"{statistics.median(values):,.0f}" for values in zip(*rounds, strict=True))
    return f"{first} ({p99[0]})" if p99 else first


if __name__ == "__main__":
    main()
