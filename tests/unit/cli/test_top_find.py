"""Which scheduler `pagoda top` looks at when it is not told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli import top_find
from pagoda.cli.plan import plan
from pagoda.cli.serve_options import ServeOptions
from pagoda.cli.top_find import find_scheduler
from pagoda.errors import PagodaError


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that is searched."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(top_find, "SHORT_TEMPORARY_FOLDER", tmp_path)
    return tmp_path


def serve(folder: Path, **changes: Any) -> str:
    """What a running `pagoda serve` leaves in its folder; returns the scheduler's address."""
    folder.mkdir(mode=0o700)
    services = [
        {"name": each.name, "address": each.address} for each in plan(ServeOptions(), folder, model=Path("/model"))
    ]
    (folder / "state.json").write_text(json.dumps({"pid": os.getpid(), "services": services} | changes))
    return f"unix:{folder}/scheduler.sock"


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_one_that_runs(tmp_path: Path) -> None:
    serve(tmp_path / "pagoda-was-killed", pid=ended_process())
    (tmp_path / "pagoda-gateway-1").mkdir(mode=0o700)
    scheduler = serve(tmp_path / "pagoda-runs")
    assert find_scheduler(None) == scheduler


def test_none_runs() -> None:
    assert find_scheduler(None) == "127.0.0.1:50052"


def test_several_run(tmp_path: Path) -> None:
    serve(tmp_path / "pagoda-1")
    scheduler = serve(tmp_path / "pagoda-2")
    with pytest.raises(PagodaError) as caught:
        find_scheduler(None)
    choices = [f"--run-dir {tmp_path}/pagoda-{i} (http://127.0.0.1:8000)" for i in (1, 2)]
    assert caught.value.message == f"more than one `pagoda serve` runs here; choose with {', '.join(choices)}"
    assert find_scheduler(tmp_path / "pagoda-2") == scheduler


def test_a_run_dir_anywhere(tmp_path: Path) -> None:
    run_dir = tmp_path / "elsewhere"
    with pytest.raises(PagodaError, match="no `pagoda serve` runs in"):
        find_scheduler(run_dir)
    scheduler = serve(run_dir)
    assert find_scheduler(run_dir) == scheduler
    assert find_scheduler(None) == "127.0.0.1:50052"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_not_trusted(tmp_path: Path, mode: int) -> None:
    serve(tmp_path / "pagoda-1")
    (tmp_path / "pagoda-1").chmod(mode)
    assert find_scheduler(None) == "127.0.0.1:50052"


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(tmp_path / "pagoda-1")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert find_scheduler(None) == "127.0.0.1:50052"


def test_a_link_to_a_folder_is_not_trusted(tmp_path: Path) -> None:
    serve(tmp_path / "other")
    (tmp_path / "pagoda-1").symlink_to(tmp_path / "other")
    assert find_scheduler(None) == "127.0.0.1:50052"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1, "services": [{"name": "scheduler"}]}', "1"])
def test_a_state_file_of_something_else_is_passed_over(tmp_path: Path, content: str) -> None:
    serve(tmp_path / "pagoda-1")
    (tmp_path / "pagoda-1" / "state.json").write_text(content)
    assert find_scheduler(None) == "127.0.0.1:50052"
