"""Where the scheduler is that somebody wants to see, when they do not say.

`pagoda serve` keeps a state.json with its services' addresses in its private folder. Nobody but its owner can have
written it, so what it says can be trusted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pagoda.errors import FailedPreconditionError, UnavailableError
from pagoda.scheduler.config import SchedulerOptions

# Folders that `pagoda serve` makes, and where it does so if the path of the temporary folder is too long for sockets.
_PATTERN = "pagoda-*"
SHORT_TEMPORARY_FOLDER = Path("/tmp")


class Running(NamedTuple):
    """A `pagoda serve` that runs on this machine. gateway, scheduler: addresses"""

    folder: Path
    gateway: str
    scheduler: str


def find_scheduler(run_dir: Path | None) -> str:
    """The scheduler of the only `pagoda serve` that this user runs here, or where one that runs alone listens.

    run_dir: of the `pagoda serve` that is meant, if one is

    Raises PagodaError where nothing runs in `run_dir`, or where there are several to choose from.
    """
    if run_dir is not None:
        if running := _read(run_dir):
            return running.scheduler
        raise UnavailableError(f"no `pagoda serve` runs in {run_dir}")
    found = list(_find_running())
    if len(found) > 1:
        choices = ", ".join(f"--run-dir {each.folder} ({each.gateway})" for each in found)
        raise FailedPreconditionError(f"more than one `pagoda serve` runs here; choose with {choices}")
    return found[0].scheduler if found else SchedulerOptions().listen


def _find_running() -> Iterator[Running]:
    for base in sorted({Path(tempfile.gettempdir()), SHORT_TEMPORARY_FOLDER}):
        for folder in sorted(base.glob(_PATTERN)):
            if _is_private(folder) and (running := _read(folder)):
                yield running


def _is_private(folder: Path) -> bool:
    """Only this user can have put something in it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and status.st_mode & 0o777 == 0o700


def _read(folder: Path) -> Running | None:
    """None: nothing runs there (any more)."""
    try:
        state = json.loads((folder / "state.json").read_text())
        addresses = {each["name"]: each["address"] for each in state["services"]}
        running = Running(folder, addresses["gateway"], addresses["scheduler"])
        return running if _is_alive(state["pid"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
