"""A service as a child process."""

from __future__ import annotations

import os
import sys

from pagoda.cli.service import Child, Service


async def test_a_service_stands_back() -> None:
    niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    waits = "import signal; signal.pause()"
    child = await Child.start(Service("some", "executor", (sys.executable, "-c", waits), "", os.environ, niceness))
    try:
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == niceness
    finally:
        assert await child.stop(10)
