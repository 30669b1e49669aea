"""The supervisor, over small stand-ins for services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli import supervisor as module
from pagoda.cli.service import Service
from pagoda.cli.supervisor import ServiceFailedError, Supervisor

# Answers /health on port argv[1] and writes a line to argv[2] when told to stop. argv[3]: what else it does.
# argv[4]: the supervisor's state file.
STAND_IN = """
import http.server, json, os, signal, sys, threading, time

port, log, conduct, state = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
if conduct == "no start":
    sys.exit("there is no such model")
if conduct == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if conduct == "starts once":
    if os.path.exists(log + ".started"):
        sys.exit("once is enough")
    open(log + ".started", "w").close()
if conduct == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def stop(*_):
        with open(log, "a") as file:
            file.write(f"{port}\\n")
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

def is_known_to_be_ready():
    if not os.path.exists(state):
        return False
    with open(state) as file:
        return any(each["pid"] == os.getpid() and each["ready"] for each in json.load(file)["services"])

def die_when_ready():
    while not is_known_to_be_ready():
        time.sleep(0.01)
    os._exit(3)

if conduct == "dies":
    threading.Thread(target=die_when_ready).start()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

Run = Callable[..., Any]


class Cell:
    """A running supervisor."""

    def __init__(self, folder: Path, conducts: dict[str, str]) -> None:
        self.state_file = folder / "state.json"
        self.stops = folder / "stops"
        self.stop = asyncio.Event()
        self.ports = {name: free_port() for name in conducts}
        services = [
            Service(
                name=name,
                kind=name.partition("-")[0],
                command=(
                    sys.executable,
                    "-c",
                    STAND_IN,
                    str(self.ports[name]),
                    str(self.stops),
                    conduct,
                    str(self.state_file),
                ),
                address=f"http://127.0.0.1:{self.ports[name]}",
                environ=dict(os.environ),
            )
            for name, conduct in conducts.items()
        ]
        supervisor = Supervisor(services, self.state_file, drain_s=0.5, greeting="all ready")
        self.task = asyncio.create_task(supervisor.run(self.stop))

    def state(self) -> dict[str, dict[str, Any]]:
        services = json.loads(self.state_file.read_text())["services"] if self.state_file.exists() else []
        return {each["name"]: each for each in services}

    async def until(self, condition: Callable[[dict[str, dict[str, Any]]], object]) -> None:
        async with asyncio.timeout(20):
            while not ((state := self.state()) and condition(state)):
                assert not self.task.done()
                await asyncio.sleep(0.01)

    async def until_ready(self) -> None:
        await self.until(lambda state: all(each["ready"] for each in state.values()))


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Cell]]:
    cells: list[Cell] = []

    def start(**conducts: str) -> Cell:
        cells.append(Cell(tmp_path, {name.replace("_", "-"): conduct for name, conduct in conducts.items()}))
        return cells[-1]

    yield start
    for each in cells:
        each.stop.set()
        with suppress(ServiceFailedError):
            await each.task


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_stops_kind_by_kind_in_order(start: Callable[..., Cell], capsys: pytest.CaptureFixture[str]) -> None:
    cell = start(gateway="", tokenizer_0="", tokenizer_1="", scheduler="")
    await cell.until_ready()
    pids = [each["pid"] for each in cell.state().values()]
    cell.stop.set()
    await cell.task
    first, *middle, last = [int(line) for line in cell.stops.read_text().split()]
    assert first == cell.ports["gateway"]
    assert last == cell.ports["scheduler"]
    assert len(middle) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert not cell.state_file.exists()
    output = capsys.readouterr().out
    assert output.count("ready after") == 4
    assert output.count("all ready") == 1


async def test_dead_service_is_restarted(
    start: Callable[..., Cell], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = start(gateway="", scheduler="")
    await cell.until_ready()
    before = cell.state()
    os.kill(before["scheduler"]["pid"], signal.SIGKILL)
    await cell.until(lambda state: state["scheduler"]["restarts"] == 1 and state["scheduler"]["ready"])
    assert cell.state()["scheduler"]["pid"] != before["scheduler"]["pid"]
    assert cell.state()["gateway"] == before["gateway"]
    assert "scheduler died (killed by SIGKILL); restarting it in 0.1 s" in caplog.text
    assert capsys.readouterr().out.count("all ready") == 1


async def test_service_that_cannot_start_stops_the_rest(start: Callable[..., Cell]) -> None:
    cell = start(gateway="", executor="no start")
    with pytest.raises(ServiceFailedError) as caught:
        await cell.task
    assert str(caught.value) == "executor could not start (exit code 1):\n    there is no such model"
    assert not cell.state_file.exists()


async def test_service_that_keeps_dying_leaves_the_others_alone(start: Callable[..., Cell]) -> None:
    cell = start(gateway="", executor_0="", executor_1="dies", executor_2="no start", executor_3="starts once")
    await cell.until(lambda state: state["executor-0"]["ready"] and state["executor-3"]["ready"])
    before = cell.state()
    os.kill(before["executor-3"]["pid"], signal.SIGKILL)
    await cell.until(lambda state: all(state[f"executor-{i}"]["restarts"] >= 2 for i in (1, 2, 3)))
    assert cell.state()["executor-0"] == before["executor-0"]


async def test_kind_of_which_nobody_can_start_stops_the_rest(start: Callable[..., Cell]) -> None:
    cell = start(gateway="", executor_0="no start", executor_1="no start")
    with pytest.raises(ServiceFailedError, match=r"executor-[01] could not start \(exit code 1\)"):
        await cell.task


async def test_only_service_that_was_ready_once_is_tried_again(start: Callable[..., Cell]) -> None:
    cell = start(gateway="", executor="starts once")
    await cell.until_ready()
    os.kill(cell.state()["executor"]["pid"], signal.SIGKILL)
    await cell.until(lambda state: state["executor"]["restarts"] >= 3)


async def test_service_killed_during_its_start(start: Callable[..., Cell]) -> None:
    cell = start(gateway="", executor="killed")
    with pytest.raises(
        ServiceFailedError, match=r"could not start \(killed by SIGKILL; is the machine out of memory\?"
    ):
        await cell.task


async def test_service_that_does_not_stop_is_killed(
    start: Callable[..., Cell], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KILL_AFTER_S", 0.2)
    cell = start(gateway="deaf", scheduler="")
    await cell.until_ready()
    cell.stop.set()
    await cell.task
    assert "gateway did not stop within 0.7 s and was killed" in caplog.text
