"""Servers as trees of processes: start, first answer, processor time, memory, end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
# Between two looks at a server that starts, in seconds.
_POLL_S = 0.02
_STOP_TIMEOUT_S = 20.0


class StartError(Exception):
    """A server has not come up."""


class Server:
    """One that runs, with everything below it.

    startup_s: from the start of the process to the first answer that says it is ready
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], port: int, output: Path, limit_s: float):
        """Starts `command` and waits for `/health`. Raises StartError."""
        self.port = port
        began = time.perf_counter()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            while not _is_healthy(port):
                if self._process.poll() is not None:
                    raise StartError(f"exit code {self._process.returncode}: {_last_line(output)}")
                if time.perf_counter() > began + limit_s:
                    raise StartError(f"not ready after {limit_s:g} s; its output is in {output}")
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise
        self.startup_s = time.perf_counter() - began

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> dict[int, float]:
        """Processor time so far, by process id."""
        return {pid: seconds for pid in _tree(self._process.pid) if (seconds := _cpu_s(pid)) is not None}

    def memory_bytes(self) -> int:
        """Resident, with what is shared shared out."""
        return sum(_pss_bytes(pid) for pid in _tree(self._process.pid))

    def stop(self) -> None:
        """Ends it and everything below it."""
        left = _tree(self._process.pid)[1:]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine_cpu_s() -> float:
    """Processor time that all processes of the machine have used; what waits, or was stolen, is not in it."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / _TICK


def wait_until_quiet(limit_s: float) -> None:
    """Until the machine has done next to nothing for half a second, or the time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        before = machine_cpu_s()
        time.sleep(0.5)
        if machine_cpu_s() - before < 0.06:
            return


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tree(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(text) for text in task.read_text().split()]
        except OSError:
            continue
    return [pid, *(each for child in children for each in _tree(child))]


def _cpu_s(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICK


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _last_line(output: Path) -> str:
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
