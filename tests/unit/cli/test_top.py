"""`pagoda top` against a real gRPC server: one frame into a pipe, and live in a terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pagoda.cli.main import main
from pagoda.cli.top import TopOptions
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc

TIMEOUT_S = 30.0

# The pseudo terminal becomes the one that Ctrl-C and Ctrl-Z come from.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "pagoda.cli.main", "top", *sys.argv[1:]])
"""

ESCAPE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Ten steps and a second pass between one state and the next."""

    def __init__(self, state_of: Any, lane_of: Any) -> None:
        self.requests: list[scheduler_pb2.GetStateRequest] = []
        self._state_of, self._lane_of = state_of, lane_of
        self.port = self._start(0)

    def _start(self, port: int) -> int:
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        return port

    def stop(self) -> None:
        self._server.stop(0).wait()

    def restart(self) -> None:
        self._start(self.port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def GetState(self, request: scheduler_pb2.GetStateRequest, context: Any) -> scheduler_pb2.GetStateResponse:
        self.requests.append(request)
        count = len(self.requests)
        lane = self._lane_of(steps=1000 + 10 * count)
        if request.block_map_cells:
            lane.block_map.cells = bytes([3] * request.block_map_cells)
        state = self._state_of(100.0 + count, lane, generation_tokens=500 * count)
        return scheduler_pb2.GetStateResponse(state=state)


@pytest.fixture
def scheduler(state_of: Any, lane_of: Any) -> Iterator[FakeScheduler]:
    scheduler = FakeScheduler(state_of, lane_of)
    yield scheduler
    scheduler.stop()


class Terminal:
    """A pseudo terminal with `pagoda top` in it, and what it shows."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24, **environ: str) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.modes_before = termios.tcgetattr(self._slave)
        self.is_alternate = self.is_cursor_hidden = False
        self.styles: Counter[str] = Counter()
        self.drawn: Counter[int] = Counter()
        """How often each row was."""
        self._rows: dict[int, str] = {}
        self._row = self._column = 1
        self._news = threading.Condition()
        self._is_open = True
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", **environ},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    @property
    def rows(self) -> list[str]:
        return [self._rows.get(row, "").rstrip() for row in range(1, max(self._rows, default=0) + 1)]

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for output after which `condition` holds."""
        with self._news:
            assert self._news.wait_for(condition, TIMEOUT_S), self.rows

    def until_shown(self, text: str) -> None:
        self.until(lambda: any(text in row for row in self.rows))

    def end(self) -> int:
        """Waits for the end; returns the exit code. What was in the way of a clean terminal fails the test."""
        code = self.process.wait(TIMEOUT_S)
        self.until(lambda: not self.is_alternate)
        assert not self.is_cursor_hidden
        assert self.modes == self.modes_before
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        """Until nobody has the other end open."""
        decoder, text = codecs.getincrementaldecoder("utf-8")(), ""
        while True:
            try:
                text += decoder.decode(os.read(self._master, 65536))
            except OSError:
                return
            with self._news:
                text = self._show(text)
                self._news.notify_all()

    def _show(self, text: str) -> str:
        """Returns the beginning of a sequence whose end has not come yet."""
        while text:
            if text[0] != "\x1b":
                plain, escape, rest = text.partition("\x1b")
                self._write(plain)
                text = escape + rest
            elif match := ESCAPE.match(text):
                self._obey(*match.groups())
                text = text[match.end() :]
            else:
                break
        return text

    def _write(self, text: str) -> None:
        row, start = self._rows.get(self._row, ""), self._column - 1
        self._rows[self._row] = row[:start].ljust(start) + text + row[start + len(text) :]
        self._column += len(text)

    def _obey(self, private: str, numbers: str, command: str) -> None:
        match private + command, numbers:
            case "?h" | "?l", "1049":
                self.is_alternate = command == "h"
                self._rows = {}
            case "?h" | "?l", "25":
                self.is_cursor_hidden = command == "l"
            case "?h" | "?l", _:
                pass
            case "H", _:
                self._row, self._column = map(int, numbers.split(";"))
            case "K", "":
                self._rows[self._row] = self._rows.get(self._row, "")[: self._column - 1]
                self.drawn[self._row] += 1
            case "J", "":
                self._rows = {row: text for row, text in self._rows.items() if row < self._row}
            case "J", "2":
                self._rows = {}
            case "m", _:
                self.styles[numbers] += 1
            case _:
                raise AssertionError(f"unknown sequence {private}{numbers}{command}")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        terminals.append(Terminal("--interval", "0.1", *arguments, **options))
        return terminals[-1]

    yield start
    for each in terminals:
        each.close()


def test_one_frame_into_a_pipe(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["top", "--scheduler", scheduler.address, "--interval", "0.1"]) == 0
    assert capsys.readouterr().out == (
        """\
pagoda top  llama bfloat16  fcfs  servi…
requests   14 running
per second 0 admitted · 0 finished
tokens/s      500 generated
kv blocks  25% held · 50% cached
prefix     - of prompt tokens found
events     none

EXECUTOR    DEC+PRE/MAX  KV STEP p50
executor-0      12+2/64 25%   12.5ms
  250 blocks held · 500 cached
  step             ██  kv             ▃▃
"""
        + 6 * f"  {38 * '█'}\n"
        + "  block map: · free  ░ cached  █ held  …\n"
    )
    assert [each.block_map_cells for each in scheduler.requests] == [0, 6 * 38]


def test_a_locale_without_block_characters(scheduler: FakeScheduler) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pagoda.cli.main", "top", "--once", "--scheduler", scheduler.address, "--interval=0.1"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert b"requests   14 running \xb7 0 of 1,024 waiting" in done.stdout
    assert done.stdout.endswith(b"block map: \xb7 free  ? cached  ? held  ? shared  ??? partly held\n")


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--scheduler", "127.0.0.1:1", "--once"]) == 1
    assert capsys.readouterr().err == (
        "pagoda top: 127.0.0.1:1: no scheduler listens there (`pagoda serve` starts one)\n"
    )


def test_somebody_else_there(capsys: pytest.CaptureFixture[str]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    assert main(["top", "--scheduler", address, "--once"]) == 1
    server.stop(0).wait()
    assert capsys.readouterr().err == f"pagoda top: {address}: what listens there is not a scheduler\n"


@pytest.mark.parametrize("interval", [0.0, -1.0, 0.09, 3601.0, float("nan")])
def test_wrong_intervals(interval: float) -> None:
    with pytest.raises(ValueError, match="it must be from"):
        TopOptions(interval=interval)


def test_live_until_q(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address)
    screen.until_shown("block map:")
    screen.until(lambda: len(scheduler.requests) > 5)
    assert screen.is_alternate
    assert screen.is_cursor_hidden
    assert screen.modes != screen.modes_before
    assert len(screen.rows) == 19
    assert screen.rows[0].startswith("pagoda top  llama bfloat16  fcfs  serving")
    assert screen.rows[0].endswith("q quits")
    assert len(screen.rows[0]) == 80
    assert screen.rows[-2] == "  " + 78 * "█"
    # The titles are the same in every frame, the uptime is not.
    assert screen.drawn[9] == 1 < screen.drawn[1]
    assert screen.styles["1"] > 0
    screen.type("xq")
    assert screen.end() == 0
    assert screen.rows == []


def test_no_colour_where_none_is_wanted(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address, NO_COLOR="1")
    screen.until_shown("block map:")
    screen.type("q")
    assert screen.end() == 0
    assert not screen.styles


@pytest.mark.parametrize("how", ["\x03", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_a_clean_terminal(scheduler: FakeScheduler, terminal: Callable[..., Terminal], how: Any) -> None:
    screen = terminal("--scheduler", scheduler.address)
    screen.until_shown("EXECUTOR")
    if isinstance(how, str):
        screen.type(how)
    else:
        screen.process.send_signal(how)
    assert screen.end() == 0


def test_resize(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address, columns=100, lines=30)
    screen.until_shown("block map:")
    assert len(screen.rows[0]) == 100
    screen.resize(40, 9)
    screen.until(lambda: screen.rows and screen.rows[0].endswith("…"))
    screen.until(lambda: len(screen.rows) == 9)
    assert max(map(len, screen.rows)) <= 40
    screen.resize(120, 40)
    screen.until(lambda: screen.rows and screen.rows[-1].startswith("  block map:") and len(screen.rows[-2]) == 120)
    screen.type("q")
    assert screen.end() == 0


def test_scheduler_goes_and_comes_back(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address)
    screen.until_shown("EXECUTOR")
    scheduler.stop()
    screen.until_shown("no answer for ")
    assert any("EXECUTOR" in row for row in screen.rows)
    scheduler.restart()
    screen.until(lambda: screen.rows and not any("no answer" in row for row in screen.rows))
    screen.type("q")
    assert screen.end() == 0


def test_scheduler_that_is_not_there_yet(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    scheduler.stop()
    screen = terminal("--scheduler", scheduler.address)
    screen.until_shown("no answer, trying again: ")
    assert len(screen.rows) == 2
    scheduler.restart()
    screen.until_shown("EXECUTOR")
    screen.type("Q")
    assert screen.end() == 0


def test_suspended_and_continued(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address)
    screen.until_shown("block map:")
    screen.type("\x1a")
    _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    screen.until(lambda: not screen.is_alternate)
    assert not screen.is_cursor_hidden
    assert screen.modes == screen.modes_before
    screen.process.send_signal(signal.SIGCONT)
    screen.until_shown("block map:")
    assert screen.is_alternate
    screen.type("q")
    assert screen.end() == 0


def test_terminal_that_goes_away_ends_it(scheduler: FakeScheduler) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, "--scheduler", scheduler.address],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        os.close(slave)
        assert b"\x1b[?1049h" in os.read(master, 65536)
        os.close(master)
        process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()


def test_dumb_terminal_gets_one_frame(scheduler: FakeScheduler, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--scheduler", scheduler.address, TERM="dumb")
    assert screen.process.wait(TIMEOUT_S) == 0
    assert not screen.is_alternate
    assert not screen.styles
    assert screen.modes == screen.modes_before
