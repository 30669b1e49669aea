"""Real processes for tests: free ports, `pagoda ...` as a child, what is left of one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def poll(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """False for a zombie as well: nobody may be left to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(each) for each in task.read_text().split()]
    return children + [each for child in children for each in descendants(child)]


class PagodaProcess:
    """`pagoda <arguments>`, with its output in a file."""

    def __init__(
        self, output: Path, *arguments: str, environ: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        """prefix: of the command, as of one that runs the rest elsewhere"""
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "pagoda.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                # Its own group, as in a terminal: a test can press Ctrl-C on it.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait(self, timeout_s: float = 20) -> int:
        """The exit code; fails the test, with the output, if it does not end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s} s; its output:\n{self.output}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def close(self) -> None:
        """Whatever happened, nothing of it is left."""
        left = descendants(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in left:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
