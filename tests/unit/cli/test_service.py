"""A service as a child process."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pagoda.cli.service import Child, Service


@asynccontextmanager
async def started(**fields: Any) -> AsyncIterator[Child]:
    waits = "import signal; signal.pause()"
    child = await Child.start(Service("some", "executor", (sys.executable, "-c", waits), "", os.environ, **fields))
    try:
        yield child
    finally:
        assert await child.stop(10)


async def test_a_service_stands_back() -> None:
    niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    async with started(niceness=niceness) as child:
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == niceness


async def test_a_service_goes_first_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(_: int, pid: int, niceness: int) -> None:
        asked.append((pid, niceness))
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    async with started(niceness=-10) as child:
        assert asked == [(child.pid, -10)]
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to processors here")
async def test_a_service_stays_on_its_processors() -> None:
    one = {min(os.sched_getaffinity(0))}
    async with started(cpus=frozenset(one)) as child:
        assert os.sched_getaffinity(child.pid) == one
    async with started() as child:
        assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
