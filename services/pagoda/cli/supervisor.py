"""Keeps services running: starts all at once, restarts what dies, stops them in order.

It knows commands, addresses and exit codes, and nothing of what the services do; when to restart one, `Restarts` says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from pagoda.cli.health import until_ready
from pagoda.cli.restarts import Restarts
from pagoda.cli.service import Child, Service, describe_exit

logger = logging.getLogger(__name__)

# How often a service that is not ready yet is mentioned: large models take their time.
SLOW_START_S = 30.0

# After the seconds for draining, until a service that does not end is killed.
KILL_AFTER_S = 10.0


class ServiceFailedError(Exception):
    """No service of a kind can start; the rest must be stopped."""


class Supervisor:
    """services: in the order in which they are stopped; neighbours of one kind together
    state_file: kept up to date with process ids and addresses, as JSON
    drain_s: seconds that running requests get when everything is stopped
    greeting: printed once, when every service is ready
    """

    def __init__(self, services: Sequence[Service], state_file: Path, drain_s: float, greeting: str) -> None:
        self._services = services
        self._state_file = state_file
        self._drain_s = drain_s
        self._greeting: str | None = greeting
        self._children: dict[str, Child] = {}
        self._ready: set[str] = set()
        self._restarts = Restarts({each.name: each.kind for each in services})
        self._num_restarts = dict.fromkeys([each.name for each in services], 0)
        self._started = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set. Raises ServiceFailedError, with everything stopped, if a kind cannot start."""
        stopped = asyncio.create_task(stop.wait())
        for service in self._services:
            self._children[service.name] = await Child.start(service)
        self._write_state()
        keepers = [asyncio.create_task(self._keep(each)) for each in self._services]
        done, _ = await asyncio.wait({stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, *keepers):
            task.cancel()
        await asyncio.gather(stopped, *keepers, return_exceptions=True)
        failed = done - {stopped}
        if not failed:
            _say(f"Stopping; running requests get {self._drain_s:g} s to end (a second Ctrl-C cuts them off).")
        await self._stop()
        for task in failed:
            task.result()

    async def _keep(self, service: Service) -> None:
        """Sees one service through its lives. Only ends by an exception."""
        begin = self._started
        while True:
            child = self._children[service.name]
            code = await self._live(service, child, begin)
            self._ready.discard(service.name)
            self._write_state()
            wait_s = self._restarts.pause_after_death(service.name)
            if wait_s is None:
                hint = "; is the machine out of memory?" if code == -signal.SIGKILL else ""
                raise ServiceFailedError(
                    f"{service.name} could not start ({describe_exit(code)}{hint}):\n{child.last_words()}"
                )
            logger.warning("%s died (%s); restarting it in %g s", service.name, describe_exit(code), wait_s)
            await asyncio.sleep(wait_s)
            begin = time.monotonic()
            self._children[service.name] = await Child.start(service)
            self._num_restarts[service.name] += 1
            self._write_state()

    async def _live(self, service: Service, child: Child, begin: float) -> int:
        """From start to death, with a line when it gets ready. Returns the exit code."""
        ended = asyncio.create_task(child.wait())
        ready = asyncio.create_task(until_ready(service.address))
        try:
            while not ended.done() and not ready.done():
                done, _ = await asyncio.wait({ended, ready}, timeout=SLOW_START_S, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    _say(f"{service.name:<12} is still starting after {time.monotonic() - begin:.0f} s")
            if not ended.done():
                ready.result()
                self._note_ready(service, time.monotonic() - begin)
            return await asyncio.shield(ended)
        finally:
            ready.cancel()

    def _note_ready(self, service: Service, seconds: float) -> None:
        self._ready.add(service.name)
        self._restarts.note_ready(service.name)
        self._write_state()
        _say(f"{service.name:<12} ready after {seconds:.1f} s")
        if self._greeting and len(self._ready) == len(self._services):
            _say(self._greeting)
            self._greeting = None

    async def _stop(self) -> None:
        """Kind by kind, in order; one that does not end in time is killed."""
        for _, group in groupby(self._services, key=lambda each: each.kind):
            services = list(group)
            timeout_s = self._drain_s + KILL_AFTER_S
            stops = [self._children[each.name].stop(timeout_s) for each in services]
            for service, in_time in zip(services, await asyncio.gather(*stops), strict=True):
                if not in_time:
                    logger.warning("%s did not stop within %g s and was killed", service.name, timeout_s)
        self._state_file.unlink(missing_ok=True)

    def _write_state(self) -> None:
        """Replaces the file at once, so that nobody reads half of it."""
        state = {
            "pid": os.getpid(),
            "services": [
                {
                    "name": each.name,
                    "pid": self._children[each.name].pid,
                    "address": each.address,
                    "ready": each.name in self._ready,
                    "restarts": self._num_restarts[each.name],
                }
                for each in self._services
            ],
        }
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(self._state_file)


def _say(text: str) -> None:
    # Nobody may be reading any more (`pagoda serve | head`); that is no reason to stop serving.
    with suppress(OSError):
        print(text, flush=True)
