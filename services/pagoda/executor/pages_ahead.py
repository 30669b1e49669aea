"""Makes the pages of a KV cache before a step needs them.

Memory gets its pages when it is first written to. A huge one has to be found and cleared: 0.2 ms, or many times that
where the kernel has to move others or a hypervisor gives it memory only now. A block has a part in every layer, each in
a page of its own, so a step that writes to the first block of new pages would make all of them: a pause that everybody
who waits for a token would notice. Instead, a thread that stands back makes those of the blocks that come next.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time

from torch import Tensor

_HUGE_PAGE = 2 << 20
# Linux 5.14; older ones refuse it, and steps make their pages.
_MADV_POPULATE_WRITE = 23
# More than the step's threads have, which wait for each other. Where they leave the processor nothing, this is about a
# tenth of it; and at rest between two parts, as a multiple of the processor time that the first took.
_NICENESS = 10
_REST = 4
# Pages of a part that are there, or being made, beyond the one that is written to. The blocks of a prompt that others
# send are granted at once, and steps go on taking blocks while pages are made.
_PAGES = 2


class PagesAhead:
    """For one thread."""

    def __init__(self, cache: Tensor) -> None:
        """cache: as `kv_cache.allocate` made it, in the CPU's memory. Begins with its first blocks."""
        self._cache = cache
        self._num_blocks = cache.shape[2]
        self._part_bytes = cache[0, 0, :1].nbytes
        self._blocks_per_page = max(1, _HUGE_PAGE // self._part_bytes)
        self._num_ready = 0
        """Blocks that have pages, or soon will."""
        self._thread: threading.Thread | None = None
        self.use(0)

    def use(self, last_block: int) -> None:
        """Blocks up to this one are written to now; those that come next will be soon."""
        wanted = min(self._num_blocks, (last_block // self._blocks_per_page + 1 + _PAGES) * self._blocks_per_page)
        if wanted <= self._num_ready or (self._thread and self._thread.is_alive()):
            return
        first, self._num_ready = self._num_ready, wanted
        self._thread = threading.Thread(target=self._make, args=(first, wanted), name="pages-ahead", daemon=True)
        self._thread.start()

    def _make(self, first: int, last: int) -> None:
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
        begin, num_bytes = self._cache.data_ptr(), self._cache.nbytes
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        page = os.sysconf("SC_PAGE_SIZE")
        for part in range(0, num_bytes, self._num_blocks * self._part_bytes):
            # Whole pages: what the ends of them hold is not touched.
            start = (part + first * self._part_bytes) // page * page
            end = min(-(-(part + last * self._part_bytes) // page) * page, num_bytes)
            began = time.thread_time()
            if madvise(begin + start, end - start, _MADV_POPULATE_WRITE):
                return
            # Steps wait for the processor that this takes from one of their threads.
            time.sleep(_REST * (time.thread_time() - began))
