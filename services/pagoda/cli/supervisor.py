"""Keeps services running: starts all at once, restarts what dies, stops them in order.

It knows commands, addresses and exit codes, and nothing of what the services do.
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
from pagoda.cli.service import Child, Service, describe_exit

logger = logging.getLogger(__name__)

# This many deaths within the window, or in a row before it was ready, and it is given up.
MAX_DEATHS = 5
DEATH_WINDOW_S = 60.0

# Before the first restart, and twice as long before each further one within the window.
FIRST_BACKOFF_S = 0.1

# How often a service that is not ready yet is mentioned: large models take their time.
SLOW_START_S = 30.0

# After the seconds for draining, until a service that does not end is killed.
KILL_AFTER_S = 10.0


class ServiceFailedError(Exception):
    """A service cannot start, or keeps dying; the rest must be stopped."""


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
        self._restarts = dict.fromkeys([each.name for each in services], 0)
        self._started = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set. Raises ServiceFailedError, with everything stopped, if a service fails for good."""
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
        deaths: list[float] = []
        begin, was_ready, failed_starts = self._started, False, 0
        while True:
            child = self._children[service.name]
            code = await self._live(service, child, begin)
            deaths.append(time.monotonic())
            failed_starts = 0 if service.name in self._ready else failed_starts + 1
            was_ready = was_ready or not failed_starts
            self._ready.discard(service.name)
            self._write_state()
            if not was_ready or failed_starts == MAX_DEATHS:
                times = "" if failed_starts == 1 else f" {failed_starts} times in a row"
                hint = "; is the machine out of memory?" if code == -signal.SIGKILL else ""
                raise ServiceFailedError(
                    f"{service.name} could not start{times} ({describe_exit(code)}{hint}):\n{child.last_words()}"
                )
            wait_s = backoff_s(deaths)
            if wait_s is None:
                raise ServiceFailedError(
                    f"{service.name} died {MAX_DEATHS} times within {DEATH_WINDOW_S:g} s "
                    f"({describe_exit(code)}); giving up:\n{child.last_words()}"
                )
            logger.warning("%s died (%s); restarting it in %g s", service.name, describe_exit(code), wait_s)
            await asyncio.sleep(wait_s)
            begin = time.monotonic()
            self._children[service.name] = await Child.start(service)
            self._restarts[service.name] += 1
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
                    "restarts": self._restarts[each.name],
                }
                for each in self._services
            ],
        }
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(self._state_file)


def backoff_s(deaths: Sequence[float]) -> float | None:
    """Seconds until the restart after the last of `deaths` (times, ascending); None: there were too many."""
    recent = sum(deaths[-1] - death < DEATH_WINDOW_S for death in deaths)
    return FIRST_BACKOFF_S * 2 ** (recent - 1) if recent < MAX_DEATHS else None


def _say(text: str) -> None:
    # Nobody may be reading any more (`pagoda serve | head`); that is no reason to stop serving.
    with suppress(OSError):
        print(text, flush=True)
