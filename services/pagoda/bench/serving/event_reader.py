"""Server-sent events from the bytes of a body (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations


class EventReader:
    """The data of events; their other fields and comments are dropped."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that `data` completes, in order; its lines are joined by line feeds."""
        text = self._buffer + data if self._buffer else data
        # Lines may end in three ways. What ends with a carriage return may go on with its line feed.
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = text.split(b"\n\n")
        self._buffer = rest + held
        return [content for block in blocks if (content := _data(block)) is not None]


def _data(block: bytes) -> bytes | None:
    """None for a block without data."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
