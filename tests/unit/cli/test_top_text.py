"""Numbers, sparklines and lines of `pagoda top`."""

from __future__ import annotations

import pytest

from pagoda.cli import top_text as text
from pagoda.cli.top_text import Span


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (1234, "1,234"),
        (99_999, "99,999"),
        (99_999.7, "100k"),
        (123_456, "123k"),
        (999_949, "1000k"),
        (1_234_567, "1.23M"),
        (25e9, "25.0G"),
        (3e15, "3000T"),
    ],
)
def test_count(number: float, expected: str) -> None:
    assert text.count(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(None, "-"), (0.0, "0"), (0.26, "0.3"), (9.9, "9.9"), (10.4, "10"), (1234.5, "1,234")]
)
def test_rate(number: float | None, expected: str) -> None:
    assert text.rate(number) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0us"),
        (0.00085, "850us"),
        (0.00123, "1.23ms"),
        (0.0141, "14.1ms"),
        (0.9994, "999ms"),
        (0.9996, "1.00s"),
        (9.994, "9.99s"),
        (59.9, "59s"),
        (200, "3m20s"),
        (7380, "2h03m"),
        (5 * 86400 + 7 * 3600, "5d07h"),
    ],
)
def test_seconds(value: float, expected: str) -> None:
    assert text.seconds(value) == expected


def test_share() -> None:
    assert (text.share(61, 100), text.share(0, 7), text.share(0, 0)) == ("61%", "0%", "-")


def test_sparkline_fills_from_the_right_and_keeps_gaps() -> None:
    assert text.sparkline([1, 2, 4, 8], 6) == "  ▂▃▅█"
    assert text.sparkline([100, 1, None, 8], 3) == "▂ █"
    assert text.sparkline([0, 0], 2) == "▁▁"
    assert text.sparkline([0.5, 1], 2, top=1) == "▅█"
    assert text.sparkline([], 3) == "   "
    assert text.sparkline([1], 0) == ""


def test_clip() -> None:
    line = [Span("abc", "bold"), Span("def")]
    assert text.plain(text.clip(line, 6)) == "abcdef"
    assert text.plain(text.clip(line, 5)) == "abcd…"
    assert text.plain(text.clip(line, 2)) == "a…"
    assert text.plain(text.clip(line, 0)) == ""


def test_fit_drops_whole_items() -> None:
    items = [[Span("one")], [Span("two")], [Span("three")]]
    assert text.plain(text.fit([Span("> ")], items, 11)) == "> one · two"
    assert text.plain(text.fit([Span("> ")], items, 10)) == "> one"
    assert text.plain(text.fit([Span("> ")], items, 1)) == "> one"


def test_ansi_ends_every_style() -> None:
    assert text.ansi([Span("a", "bold"), Span("b")]) == "\x1b[1ma\x1b[0mb"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ünïcode-1", "ünïcode-1"), ("\x1b[2Jgone", "?[2Jgone"), ("a\nb\tc", "a?b?c"), ("東京", "??"), ("e\u0301", "e?")],
)
def test_names_of_strangers_move_no_cursor(name: str, expected: str) -> None:
    assert text.printable(name) == expected


def test_runs() -> None:
    cells = [Span("a", "x"), Span("b", "x"), Span("c", "y")]
    assert text.runs(cells) == [Span("ab", "x"), Span("c", "y")]
