"""Records of runs as a markdown table of medians."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import table

# A run while which others used more of the processors than this says little.
NOISY_SHARE = 0.05

# Title -> (field of a record, digits after the point).
_COLUMNS = {
    "start, s": ("startup_s", 1),
    "memory, MiB": ("memory_mib", 0),
    "output tokens/s": ("output_throughput", 1),
    "TTFT p50, ms": ("p50_ttft_ms", 1),
    "TTFT p99": ("p99_ttft_ms", 1),
    "TPOT p50": ("p50_tpot_ms", 2),
    "ITL p50": ("p50_itl_ms", 2),
    "ITL p99": ("p99_itl_ms", 1),
    "longest gap": ("longest_gap_ms", 0),
    "gap p99": ("p99_gap_ms", 1),
    "alone": ("p99_alone_gap_ms", 1),
    "long prompt's TTFT": ("intruder_ttft_ms", 0),
    "cached tokens": ("total_cached_tokens", 0),
    "failed": ("failed", 0),
    "server CPU, us/token": ("server_cpu_us_per_token", 0),
    "client CPU": ("client_cpu_us_per_token", 0),
    "read GB/s": ("bandwidth_gb_s", 0),
    "others' CPU, %": ("other_cpu_percent", 1),
}

Record = dict[str, Any]


def print_tables(records: Sequence[Record]) -> None:
    """The table, and below it what could not be measured."""
    runs = [_completed(record) for record in records if "error" not in record]
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in runs:
        key = (record["model"], record["weights"], record["load"], record["engine"])
        groups.setdefault(key, []).append(record)
    # As first seen, but the engines of one load beside each other.
    order = {name: number for number, name in enumerate(dict.fromkeys(record["load"] for record in runs))}
    first = {key: number for number, key in enumerate(groups)}
    keys = sorted(groups, key=lambda key: (key[0], key[1], order[key[2]], first[key]))
    header = ["model", "weights", "load", "engine", "runs", *_COLUMNS, "output tokens/s from - to"]
    print(table(header, [[*key, *_cells(groups[key])] for key in keys]))
    for record in records:
        if "error" in record:
            print(f"\n{record['engine']}, {record['model']} {record['weights']}: {record['error']}")
        for reason, count in record.get("failures", {}).items():
            print(f"\n{record['engine']}, {record['model']} {record['weights']} {record['load']}: {count} x {reason}")
        if "intruder_error" in record:
            print(
                f"\n{record['engine']}, {record['model']} {record['load']}, the long prompt: {record['intruder_error']}"
            )


def _completed(record: Record) -> Record:
    share = record.get("other_cpu_share")
    return record | ({} if share is None else {"other_cpu_percent": share * 100})


def _cells(records: Sequence[Record]) -> list[str]:
    clean = [record for record in records if record.get("other_cpu_share", 0.0) <= NOISY_SHARE]
    used = clean or records
    rates = _values(used, "output_throughput")
    return [
        f"{len(clean)} of {len(records)}" if clean != list(records) else str(len(records)),
        *(_median(_values(used, name), digits) for name, digits in _COLUMNS.values()),
        f"{min(rates):.1f} - {max(rates):.1f}" if rates else "",
    ]


def _values(records: Iterable[Record], name: str) -> list[float]:
    return [record[name] for record in records if record.get(name) is not None]


def _median(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else ""
