"""The terminal while something is drawn on all of it.

    with Screen() as screen:
        screen.draw(lines)

Inside the block the terminal shows its alternate screen and hands over keys as they are pressed, without showing them.
Leaving the block, however that happens, gives back what was there.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

# Private modes of DEC and xterm: alternate screen, visible cursor, wrapping at the margin.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
# Between these two a terminal that knows them shows nothing half drawn; others ignore them.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"

_DEFAULT_SIZE = os.terminal_size((80, 24))


class Screen:
    """Standard input and output, which must be a terminal."""

    def __init__(self) -> None:
        self.input_fd = sys.stdin.fileno()
        self._output_fd = sys.stdout.fileno()
        self._modes: list[Any] | None = None
        # What stands on the screen, line by line; None: nobody knows.
        self._shown: list[str] | None = None

    def __enter__(self) -> Screen:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Takes the terminal; nothing if it is taken already."""
        if self._modes is None:
            self._modes = termios.tcgetattr(self.input_fd)
            tty.setcbreak(self.input_fd, termios.TCSANOW)
            self._write(_ENTER)
            self._shown = None

    def leave(self) -> None:
        """Gives the terminal back; nothing if it is not taken. A terminal that is gone is no error."""
        if self._modes is not None:
            modes, self._modes = self._modes, None
            with suppress(OSError):
                self._write(_LEAVE)
            with suppress(termios.error):
                termios.tcsetattr(self.input_fd, termios.TCSANOW, modes)

    def suspend(self) -> None:
        """Ctrl-Z: gives the terminal back and stops the process. `enter` goes on when SIGCONT comes."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)

    @property
    def size(self) -> os.terminal_size:
        """(columns, lines); the usual ones where the terminal does not know."""
        size = os.get_terminal_size(self._output_fd)
        return size if all(size) else _DEFAULT_SIZE

    def draw(self, lines: Sequence[str]) -> None:
        """Makes the screen show `lines`, which must fit, by writing those that differ from what it shows.

        Raises OSError when the terminal is gone.
        """
        if self._modes is None:
            return
        shown = self._shown or []
        changes = [] if self._shown is not None else ["\x1b[2J"]
        changes += [
            f"\x1b[{row};1H\x1b[K{line}"
            for row, line in enumerate(lines, start=1)
            if row > len(shown) or line != shown[row - 1]
        ]
        if len(lines) < len(shown):
            changes.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        self._shown = list(lines)
        if changes:
            self._write(_BEGIN_FRAME + "".join(changes) + _END_FRAME)

    def forget(self) -> None:
        """The terminal was resized or used by others: nobody knows what it shows."""
        self._shown = None

    def read_keys(self) -> str:
        """What was typed; "" when the terminal is gone. Only to be called when there is something to read."""
        try:
            return os.read(self.input_fd, 1024).decode(errors="replace")
        except OSError:
            return ""

    def _write(self, text: str) -> None:
        data = memoryview(text.encode())
        while data:
            data = data[os.write(self._output_fd, data) :]
