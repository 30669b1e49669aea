"""Brings a checkpoint's files into the page cache while other things are done, such as importing torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread


def read_ahead(folder: Path) -> None:
    """Starts a thread and returns. What cannot be read is for the loader to tell."""
    if hasattr(os, "posix_fadvise"):
        Thread(target=_advise, args=(folder,), name="read-ahead", daemon=True).start()


def _advise(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError), path.open("rb") as file:
            # The kernel reads; the call waits while its queue is full, without holding the GIL.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
