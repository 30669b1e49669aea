"""What a figure depends on beside the code: version and machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path


def circumstances() -> str:
    """One line, without an end."""
    return f"pagoda {version('pagoda')}, Python {platform.python_version()} on {processor()}"


def processor() -> str:
    """Cores and their model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
