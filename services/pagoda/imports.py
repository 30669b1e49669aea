"""Importing what stays: the garbage collector is not to search it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For imports. Modules make hundreds of thousands of objects, none of them garbage: searched again and again while
    torch is imported, they cost a sixth of that time. What is there at the end is never searched any more."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
