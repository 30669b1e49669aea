"""How benchmarks print what they found: markdown, with the circumstances."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pagoda.bench.circumstances import processor


def circumstances() -> str:
    """Hardware, Python, commit, date and what else the machine does."""
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{processor()}; Python {platform.python_version()}; commit {_commit()}; {now}; load average {load}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return described.stdout.strip()
