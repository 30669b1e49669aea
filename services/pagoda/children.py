"""Child processes that never outlive their parent, and private folders for them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Set for children that tie themselves to their parent: its process id.
PARENT_VARIABLE = "PAGODA_PARENT_PID"

_PR_SET_PDEATHSIG = 1

# A unix socket's path has 107 usable bytes; what stands in the folder gets the rest.
MAX_FOLDER_CHARS = 70


def die_with(parent: int) -> Callable[[], None]:
    """A function that ties the calling process to its parent: it gets SIGKILL when `parent` ends, however that ends.

    Meant for `preexec_fn`, so everything is loaded here, before the fork. Only Linux has such a signal; elsewhere
    the function does nothing.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have ended before the call.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return tie


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A new folder that only this user can enter, short enough for unix sockets; removed at the end."""
    base = tempfile.gettempdir()
    if len(base) + len(prefix) + 8 > MAX_FOLDER_CHARS:
        base = "/tmp"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
