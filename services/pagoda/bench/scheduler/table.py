"""The report for people: an aligned text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pagoda.bench.scheduler.report import Report

_COLUMNS = ("mean", "p50", "p90", "p99", "max")
_TITLES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "inter-token latency",
    "e2el_ms": "end to end",
    "queue_ms": "queue wait",
    "submit_us": "submit, per call",
    "commit_us": "commit, per call",
    "step_us": "step, per call",
    "settle_us": "settle, per call",
}


def format_report(report: Report) -> str:
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield from _values("Requests", _titled(report["requests"]))
    yield from _values("Per second", _titled(report["throughput"]))
    yield from _percentiles("Latency, ms", report["latency"])
    yield from _values("Cells", _titled(report["cells"]))
    if report["moves"]["moves_done"] or report["moves"]["moves_failed"]:
        yield from _values("Moves between executors", _titled(report["moves"]))
    if report["errors"]:
        yield from _values("Refused or failed", report["errors"])
    fairness = dict(report["fairness"])
    shares, backlogged_shares = fairness.pop("shares"), fairness.pop("backlogged_shares")
    if len(shares) > 1:
        yield from _values("Share of the service", shares)
        if backlogged_shares:
            yield from _values("Share while all clients have requests waiting", backlogged_shares)
        yield from _values("Fairness", _titled(fairness))
    real = report["real"]
    numbers = {name: value for name, value in real.items() if not isinstance(value, dict)}
    yield from _values("Real time", _titled(numbers))
    yield from _percentiles("Core, us", {name: value for name, value in real.items() if isinstance(value, dict)})


def _values(title: str, values: dict[str, Any]) -> Iterator[str]:
    yield f"\n{title}"
    for name, value in values.items():
        yield f"  {name:<30} {_number(value):>12}"


def _percentiles(title: str, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    yield f"\n{title:<32} " + " ".join(f"{column:>10}" for column in _COLUMNS)
    for name, row in rows.items():
        cells = " ".join(f"{_number(row.get(column)):>10}" for column in _COLUMNS)
        yield f"  {_TITLES[name]:<30} {cells}"


def _titled(values: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in values.items()}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
