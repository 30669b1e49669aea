"""`pagoda top`: a scheduler, live in the terminal. Standard library and gRPC only."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pagoda.cli import top_text as text
from pagoda.cli.top_client import StateClient
from pagoda.cli.top_find import find_scheduler
from pagoda.cli.top_history import History
from pagoda.cli.top_screen import Screen
from pagoda.cli.top_view import CONNECTED, Connection, render, wanted_map_cells
from pagoda.errors import PagodaError
from pagoda.options import option
from pagoda.signals import stop_event

_SHORTEST_INTERVAL_S = 0.1
# Between the first two states, without which there are no rates.
_FIRST_INTERVAL_S = 0.25
# How soon a scheduler that is away is looked for again, at the latest.
_RETRY_S = 1.0


@dataclass(frozen=True)
class TopOptions:
    """Raises ValueError for an interval that would keep the scheduler from its work."""

    scheduler: str | None = option(
        None, "Its gRPC address. Default: that of the `pagoda serve` on this machine.", metavar="HOST:PORT"
    )
    run_dir: Path | None = option(None, "The --run-dir of the `pagoda serve` to look at.", metavar="DIR")
    interval: float = option(1.0, "Seconds between two looks.", metavar="S")
    once: bool = option(False, "Print what one interval shows, and end; so it does without a terminal, too.")

    def __post_init__(self) -> None:
        if not _SHORTEST_INTERVAL_S <= self.interval <= 3600:
            raise ValueError(f"interval is {self.interval}; it must be from {_SHORTEST_INTERVAL_S} to 3600 seconds")


def main(options: TopOptions) -> int:
    """Returns when the user has seen enough. Raises PagodaError when there is nothing to see."""
    find = partial(_find, options)
    # More than one to choose from is said now, and not on a screen that goes away.
    find()
    if options.once or not _is_terminal():
        asyncio.run(_print_once(StateClient(find), options.interval))
    else:
        with Screen() as screen:
            asyncio.run(LiveView(screen, StateClient(find), options.interval).run())
    return 0


def _find(options: TopOptions) -> str:
    return options.scheduler or find_scheduler(options.run_dir)


async def _print_once(client: StateClient, interval_s: float) -> None:
    width = shutil.get_terminal_size().columns
    history = History(interval_s)
    try:
        history.add(state := await client.ask(0))
        await asyncio.sleep(interval_s)
        history.add(await client.ask(wanted_map_cells(state, width, None)))
    finally:
        await client.close()
    # Better a "?" for a block of a map than no frame at all where the locale knows no such characters.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for line in render(history, CONNECTED, width, None):
        print(text.plain(line))


class LiveView:
    """Looks, draws, and listens to keys until it is told to stop."""

    def __init__(self, screen: Screen, client: StateClient, interval_s: float) -> None:
        self._screen = screen
        self._client = client
        self._interval_s = interval_s
        self._history = History(interval_s)
        self._problem: str | None = None
        self._answered_at = 0.0
        self._to_text = text.plain if os.environ.get("NO_COLOR") else text.ansi

    async def run(self) -> None:
        """Until q is pressed, or a signal says so. Raises OSError when the terminal is gone."""
        loop = asyncio.get_running_loop()
        stop = stop_event()
        loop.add_reader(self._screen.input_fd, self._on_keys, stop)
        loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        loop.add_signal_handler(signal.SIGTSTP, self._screen.suspend)
        loop.add_signal_handler(signal.SIGCONT, self._on_continue)
        looking, stopped = asyncio.create_task(self._look()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({looking, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
        finally:
            # Before anything that takes time: who has seen enough is not kept waiting.
            self._screen.leave()
            loop.remove_reader(self._screen.input_fd)
            looking.cancel()
            stopped.cancel()
            await asyncio.gather(looking, stopped, return_exceptions=True)
            await self._client.close()

    async def _look(self) -> None:
        """Only ends by an exception."""
        self._draw()
        while True:
            await self._ask()
            self._draw()
            await asyncio.sleep(self._pause_s())

    async def _ask(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            state = await self._client.ask(wanted_map_cells(self._history.last, *self._screen.size))
        except PagodaError as error:
            self._problem = error.message
        else:
            self._problem, self._answered_at = None, now()
            self._history.add(state)

    def _pause_s(self) -> float:
        if self._problem is not None:
            return min(self._interval_s, _RETRY_S)
        return min(self._interval_s, _FIRST_INTERVAL_S) if len(self._history.states) < 2 else self._interval_s

    def _draw(self) -> None:
        silent_s = asyncio.get_running_loop().time() - self._answered_at
        connection = Connection(self._problem, silent_s)
        lines = render(self._history, connection, *self._screen.size, hint="q quits")
        self._screen.draw([self._to_text(line) for line in lines])

    def _on_keys(self, stop: asyncio.Event) -> None:
        keys = self._screen.read_keys()
        if not keys or "q" in keys.lower():
            stop.set()

    def _on_resize(self) -> None:
        self._screen.forget()
        self._draw()

    def _on_continue(self) -> None:
        self._screen.enter()
        self._on_resize()


def _is_terminal() -> bool:
    """There is a keyboard, and a screen that can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")
