"""Server-sent events, whole and in pieces."""

from __future__ import annotations

import pytest

from pagoda.bench.serving.event_reader import EventReader

STREAM = (
    b": ping\n\ndata: one\n\nevent: x\ndata:two\ndata:  lines\nid: 7\n\n\n\ndata\n\ndata:\n\ndata: last\n\ndata: open"
)
EVENTS = [b"one", b"two\n lines", b"", b"last"]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events(line_end: bytes, size: int) -> None:
    data = STREAM.replace(b"\n", line_end)
    reader = EventReader()
    found = [event for at in range(0, len(data), size) for event in reader.feed(data[at : at + size])]
    assert found == EVENTS
