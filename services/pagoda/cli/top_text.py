"""Text for a terminal: spans with a style, and numbers, bars and sparklines that fit a given width.

A line is made of spans and knows no escape sequences; `plain` and `ansi` turn it into what is printed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias


class Span(NamedTuple):
    text: str
    style: str = ""


Line: TypeAlias = list[Span]

# Codes of "select graphic rendition" (ECMA-48). All of them are readable on dark and on light.
_CODES = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "warn": "33",
    "bad": "1;31",
    "held": "32",
    "cached": "36",
    "shared": "35",
}

_EIGHTHS = "▁▂▃▄▅▆▇█"


def plain(line: Line) -> str:
    return "".join(span.text for span in line).rstrip()


def ansi(line: Line) -> str:
    return "".join(f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style else text for text, style in line)


def length(line: Line) -> int:
    return sum(len(span.text) for span in line)


def clip(line: Line, width: int) -> Line:
    """The line, cut off where it is longer than `width` columns."""
    if length(line) <= width:
        return line
    clipped: Line = []
    room = max(width - 1, 0)
    for text, style in line:
        clipped.append(Span(text[:room], style))
        room -= len(clipped[-1].text)
    return [*clipped, Span("…"[:width])]


def fit(label: Line, items: Sequence[Line], width: int) -> Line:
    """The label and as many of the items as there is room for; the first in any case."""
    line = list(label)
    for position, item in enumerate(items):
        separator = [Span(" · ", "dim")] if position else []
        if position and length(line) + length(separator) + length(item) > width:
            break
        line += [*separator, *item]
    return line


def printable(text: str) -> str:
    """`text`, which a stranger may have chosen, without what moves the cursor or takes other than one column."""
    return "".join(
        each if each.isprintable() and not unicodedata.combining(each) and not _is_wide(each) else "?" for each in text
    )


def count(number: float) -> str:
    """ "1,234", "123k", "1.23M" """
    if round(number) < 100_000:
        return f"{number:,.0f}"
    for unit in "kMG":
        number /= 1000
        if round(number, 1) < 1000:
            return f"{_digits(number)}{unit}"
    return f"{_digits(number / 1000)}T"


def rate(number: float | None) -> str:
    """ "0.3", "1,234"; "-" for None, which is unknown"""
    if number is None:
        return "-"
    return f"{number:.1f}" if 0 < number < 10 else count(number)


def share(part: float, whole: float) -> str:
    """ "61%"; "-" of nothing"""
    return f"{100 * part / whole:.0f}%" if whole else "-"


def seconds(value: float) -> str:
    """ "850us", "12.3ms", "1.20s", "59s", "3m20s", "2h03m", "5d07h" """
    if value < 0.001:
        return f"{value * 1e6:.0f}us"
    if value < 0.9995:
        return f"{_digits(value * 1e3)}ms"
    if value < 10:
        return f"{value:.2f}s"
    whole = int(value)
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02}{smaller_unit}"
    return f"{whole}s"


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """The last `width` values, the newest at the right; None is a gap.

    top: what fills a column's height; the largest value shown, if not given
    """
    shown = list(values)[-width:] if width > 0 else []
    top = max((each for each in shown if each is not None), default=0) if top is None else top
    return "".join(" " if each is None else eighth(each / top if top else 0) for each in shown).rjust(max(width, 0))


def eighth(part: float) -> str:
    """A column filled to `part` of its height, [0, 1], and at least visible."""
    return _EIGHTHS[min(int(part * 8), 7)]


def runs(cells: Iterable[Span]) -> Line:
    """Spans side by side that have the same style become one."""
    return [
        Span("".join(each.text for each in group), style) for style, group in groupby(cells, lambda each: each.style)
    ]


def _digits(number: float) -> str:
    """Three digits that count: "1.23", "12.3", "123"."""
    if round(number, 2) < 10:
        return f"{number:.2f}"
    return f"{number:.1f}" if round(number, 1) < 100 else f"{number:.0f}"


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F")
