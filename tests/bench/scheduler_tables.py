"""Measurements of scheduler_cases.py over several rounds, and the tables that are made of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from report import table
from scheduler_cases import Measurement

# (case, plans in flight, rows or block size)
Key = tuple[str, int, int]
# [median, p99, mean] in us by column.
Columns = dict[str, list[float]]


class Rounds:
    """Measurements of one scheduler."""

    def __init__(self) -> None:
        self.version = ""
        self._measurements: defaultdict[Key, list[Measurement]] = defaultdict(list)

    def add(self, round_: Iterable[Measurement]) -> None:
        for measurement in round_:
            if "version" in measurement:
                self.version = measurement["version"]
            else:
                size = measurement.get("rows") or measurement["block_size"]
                self._measurements[measurement["case"], measurement.get("depth", 1), size].append(measurement)

    def columns(self) -> dict[Key, Columns]:
        """The medians over the rounds."""
        return {
            key: {
                name: [statistics.median(values) for values in zip(*(each[name] for each in rounds), strict=True)]
                for name, value in rounds[0].items()
                if isinstance(value, list)
            }
            for key, rounds in self._measurements.items()
        }


@dataclass(frozen=True)
class Section:
    """One table. ours, theirs: columns as they were measured, and what they are called; compared: ratios to show."""

    title: str
    ours: Mapping[str, str]
    theirs: Mapping[str, str]
    compared: tuple[str, ...] = ("all",)
    size: str = "rows"


_STEP = {name: name for name in ("plan", "commit", "plan + commit", "settle", "all", "encode")}
_VLLM_STEP = {"plan": "vLLM schedule", "commit": "update", "all": "all", "encode": "pickle"}
_PREFIX = {name: name for name in ("hash", "lookup", "hash + lookup", "submit", "admitting step")}
_PROMPT = "A prompt of 1,088 tokens, 1,024 of them cached; submit includes building and hashing the request"

SECTIONS = {
    ("steady", 1): Section("Steady decode: no row joins, ends or crosses a block boundary", _STEP, _VLLM_STEP),
    ("staggered", 1): Section("Staggered decode: 1/16 of the rows cross a block boundary", _STEP, _VLLM_STEP),
    ("steady", 2): Section("Steady decode, two plans in flight", _STEP, _VLLM_STEP),
    ("staggered", 2): Section("Staggered decode, two plans in flight", _STEP, _VLLM_STEP),
    ("turnover", 1): Section(
        "Turnover: 5 % of the rows end in every step, and as many prompts of 128 tokens start",
        {"submit": "submit", **_STEP},
        {"submit": "vLLM submit", **_VLLM_STEP, "plan": "schedule"},
    ),
    ("prefix", 1): Section(
        _PROMPT,
        _PREFIX,
        {**_PREFIX, "hash": "vLLM hash"},
        compared=("hash + lookup", "submit", "admitting step"),
        size="block size",
    ),
}


def tables(ours: dict[Key, Columns], theirs: dict[Key, Columns]) -> str:
    """One per section. Ratios are of medians, and of means in brackets. theirs: empty where vLLM was not measured"""
    parts = []
    for (case, depth), section in SECTIONS.items():
        keys = [key for key in ours if key[:2] == (case, depth)]
        if keys:
            lines = [_line(section, key[2], ours[key], theirs.get(key)) for key in keys]
            header = [section.size, *section.ours.values()]
            if theirs:
                header += [*section.theirs.values(), *(f"ratio of {name}" for name in section.compared)]
            parts.append(f"\n{section.title}\n\n{table(header, lines)}")
    return "\n".join(parts)


def _line(section: Section, size: int, ours: Columns, theirs: Columns | None) -> list[str]:
    line = [f"{size:,}", *(_cell(name, ours) for name in section.ours)]
    if theirs:
        line += [_cell(name, theirs) for name in section.theirs]
        for name in section.compared:
            (our_median, _, our_mean), (median, _, mean) = ours[name], theirs[name]
            line.append(f"{_number(median / our_median)} ({_number(mean / our_mean)})")
    return line


def _cell(name: str, columns: Columns) -> str:
    median, p99, mean = map(_number, columns[name])
    return f"{median} ({p99}), {mean}" if name == "all" else f"{median} ({p99})"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
