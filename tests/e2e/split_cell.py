"""A cell of separate processes over TCP on loopback, restarted when they end, as pods are, and whatever befalls them.

scheduler, tokenizer, prefill and decode executors; no gateway: streams are read from the tokenizer's gRPC
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from processes import PagodaProcess, free_port, poll

from pagoda.bundled import CHAT_MODEL
from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc

START_TIMEOUT_S = 60.0
# How soon silence is noticed, and how often it is looked for that something has ended.
HEARTBEAT_TIMEOUT_S = 1.5
WATCH_INTERVAL_S = 0.05

_EXECUTOR = "--max-model-len 1024 --max-num-seqs 32 --max-num-batched-tokens 64 --num-gpu-blocks-override 1024".split()


class SplitCell:
    """`with` it, the processes run; they start at once, and `wait_until_ready` waits for them."""

    def __init__(self, folder: Path, *, num_prefill: int, num_decode: int) -> None:
        ports = {name: free_port() for name in ("scheduler", "executors", "tokenizers", "tokenizer")}
        self.ports = ports
        self.scheduler = f"127.0.0.1:{ports['scheduler']}"
        self.tokenizer = f"127.0.0.1:{ports['tokenizer']}"
        self.roles = {f"prefill-{i}": "prefill" for i in range(num_prefill)} | {
            f"decode-{i}": "decode" for i in range(num_decode)
        }
        self.num_restarts = 0
        self._folder = folder
        self._commands = {
            "scheduler": [
                *("scheduler", "--listen", self.scheduler, "--log-level", "warning"),
                *("--executor-endpoint", f"tcp://127.0.0.1:{ports['executors']}"),
                *("--tokenizer-endpoint", f"tcp://127.0.0.1:{ports['tokenizers']}"),
                *("--heartbeat-interval-s", "0.3", "--heartbeat-timeout-s", str(HEARTBEAT_TIMEOUT_S)),
                *("--step-timeout-s", "20", "--max-local-prefill-tokens", "16", "--transfer-timeout-s", "2"),
            ],
            "tokenizer": [
                *("tokenizer", str(CHAT_MODEL), "--listen", self.tokenizer, "--scheduler", self.scheduler),
                *("--log-level", "warning", "--recovery-s", "60"),
            ],
        } | {
            name: [
                *("executor", str(CHAT_MODEL), "--name", name, "--role", role, "--scheduler", self.scheduler),
                *("--listen", f"unix:{folder}/{name}.sock", "--device", "cpu", "--threads", "1"),
                *("--transfer", "tcp", "--log-level", "warning", "--drain-s", "10", *_EXECUTOR),
            ]
            for name, role in self.roles.items()
        }
        self._processes: dict[str, PagodaProcess] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> SplitCell:
        for name in self._commands:
            self._start(name)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._watcher.join()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        for process in self._processes.values():
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        """Every executor has joined."""

        def joined() -> bool:
            state = self.state()
            return state is not None and {lane.name for lane in state.lanes} == self.roles.keys()

        poll(joined, START_TIMEOUT_S, f"every executor has joined\n{self.output}")

    def state(self) -> scheduler_pb2.SchedulerState | None:
        """The scheduler's view, proven sound; None where it does not answer."""
        try:
            with open_blocking_channel(self.scheduler) as channel:
                stub = scheduler_pb2_grpc.SchedulerStub(channel)
                answer = stub.GetState(scheduler_pb2.GetStateRequest(check_integrity=True), timeout=2)
        except Exception:
            return None
        assert list(answer.violations) == []
        state: scheduler_pb2.SchedulerState = answer.state
        return state

    def signal(self, name: str, number: signal.Signals) -> None:
        """One that has just ended gets none."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            os.kill(self._processes[name].pid, number)

    @property
    def output(self) -> str:
        """The last lines that each process has written."""
        parts = [f"--- {name}\n{process.output[-2000:]}" for name, process in self._processes.items()]
        return "\n".join(parts)

    def _start(self, name: str) -> None:
        self._processes[name] = PagodaProcess(self._folder / f"{name}.log", *self._commands[name])

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_INTERVAL_S):
            for name in self._commands:
                with self._lock:
                    if self._processes[name].process.poll() is not None:
                        self.num_restarts += 1
                        self._start(name)


def can_sever() -> bool:
    """Whether this machine lets us end the TCP connections of others."""
    if shutil.which("ss") is None:
        return False
    done = subprocess.run(["ss", "-K", "-t", "sport = :1"], capture_output=True, check=False)
    return done.returncode == 0 and not done.stderr


def sever(ports: Iterable[int]) -> None:
    """Ends every TCP connection with one of these ports."""
    for port in ports:
        for side in ("sport", "dport"):
            subprocess.run(["ss", "-K", "-t", f"{side} = :{port}"], capture_output=True, check=False)
