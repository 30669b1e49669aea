"""One service as a child process: how it is started, its log lines, how it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pagoda.children import PARENT_VARIABLE

# Longest log line that is passed on; longer ones come in pieces.
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Service:
    """kind: services of one kind are stopped together
    command: program and arguments
    address: where it answers health checks: "unix:/path" (gRPC) or an http:// URL
    environ: its whole environment
    niceness: how far it stands back when processors are scarce, from -20, before all others, to 19; below 0 only where
        the system lets this process do that
    cpus: the processors that it stays on; empty: any
    """

    name: str
    kind: str
    command: tuple[str, ...]
    address: str
    environ: Mapping[str, str] = field(repr=False)
    niceness: int = 0
    cpus: frozenset[int] = frozenset()


class Child:
    """A started service. `wait` notices its end; `stop` brings it about."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=5)
        self._logs = asyncio.create_task(self._forward_logs())

    @classmethod
    async def start(cls, service: Service) -> Child:
        process = await asyncio.create_subprocess_exec(
            *service.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_MAX_LINE_BYTES,
            env={**service.environ, PARENT_VARIABLE: str(os.getpid())},
            # Ctrl-C is for the supervisor, which stops the services in order.
            process_group=0,
        )
        # It has no threads yet, and those to come inherit this.
        with suppress(ProcessLookupError):
            if service.niceness:
                with suppress(PermissionError):
                    os.setpriority(os.PRIO_PROCESS, process.pid, service.niceness)
            if service.cpus:
                os.sched_setaffinity(process.pid, service.cpus)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the process has ended and its log lines are out."""
        code = await self._process.wait()
        await self._logs
        return code

    async def stop(self, timeout_s: float) -> bool:
        """Sends SIGTERM, and SIGKILL `timeout_s` seconds later. False if it came to that."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self.wait()), timeout_s)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.wait()
            return False
        return True

    def last_words(self) -> str:
        """Its last log lines, indented."""
        return "\n".join(f"    {line}" for line in self._last_lines)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _forward_logs(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # longer than the limit; what was read is dropped
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)


def describe_exit(code: int) -> str:
    """ "exit code 1", "killed by SIGKILL" """
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
