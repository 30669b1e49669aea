"""Memory in pages of 2 MiB, where the kernel gives them: with small ones, address translation takes a share of every
step that reads much of a large cache.

Linux decides by /sys/kernel/mm/transparent_hugepage/enabled for private memory, which most distributions leave to the
process ("madvise"), and by shmem_enabled beside it for memory that processes share, which they do not ("never"). So a
cache is shared where that costs nothing, and where it is used most: by executors that only compute prompts and hand
them on. Blocks of others are brought to their receivers, by whom they are rarely wanted.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

_SHARED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def private_memory(num_bytes: int) -> mmap.mmap:
    """Zeroed; pages that are never used cost nothing. Raises OSError when there is not as much address space."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advise(memory)
    return memory


def shared_can_be_huge() -> bool:
    """Whether the kernel gives huge pages to shared memory that asks for them."""
    try:
        return not {"[never]", "[deny]"} & set(_SHARED.read_text().split())
    except OSError:
        return False


def advise(memory: mmap.mmap) -> None:
    """Asks for huge pages; where there are none, all goes on with small ones."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
