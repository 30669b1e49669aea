"""Log lines of every process: time, level, process name, message; on standard error."""

from __future__ import annotations

import logging
import sys


def configure_logging(process: str, level: str = "info") -> None:
    """process: what the lines call this process, for example "scheduler"."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)-7s {process} | %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
