"""Makes the pages of a KV cache before a step needs them.

Memory gets its pages when it is first written to. A huge one has to be found and cleared: 0.2 ms, or many times that
where the kernel has to move others or a hypervisor gives it memory only now. A block has a part in every layer, each in
a page of its own, so a step that writes to the first block of new pages would make all of them: a pause that everybody
who waits for a token would notice. Instead, a thread that runs when no other wants its processor makes those of the
blocks that come next.

It writes to them. To ask the kernel for pages (MADV_POPULATE_WRITE) would take a lock of the whole address space, and
whoever allocates or frees memory in a step would wait for a thread that gets no time.
"""

from __future__ import annotations

import contextlib
import os
import threading

import torch
from torch import Tensor

from pagoda.kernels.cpu.block_copy import CpuBlockCopy
from pagoda.kernels.cpu.library import library

_HUGE_PAGE = 2 << 20
# Pages of a part that are there, or being made, beyond the one that is written to. The blocks of a prompt that others
# send are granted at once, and beside busy steps a page in every part takes seconds.
_PAGES = 2


class PagesAhead:
    """For one thread. Where nothing can be compiled it does nothing, and steps make their pages."""

    def __init__(self, cache: Tensor) -> None:
        """cache: as `kv_cache.allocate` made it, in the CPU's memory. Begins with its first blocks."""
        num_blocks = cache.shape[2]
        self._parts = cache.view(-1, num_blocks, cache[0, 0, 0].numel()).view(torch.uint8).numpy()
        self._blocks_per_page = max(1, _HUGE_PAGE // self._parts.shape[2])
        self._num_ready = 0
        """Blocks that have pages, or soon will."""
        self._thread: threading.Thread | None = None
        loaded = library()
        self._blocks = None if loaded is None else CpuBlockCopy(loaded)
        self.use(0)

    def use(self, last_block: int) -> None:
        """Blocks up to this one are written to now; those that come next will be soon."""
        num_blocks = self._parts.shape[1]
        wanted = min(num_blocks, (last_block // self._blocks_per_page + 1 + _PAGES) * self._blocks_per_page)
        if self._blocks is None or wanted <= self._num_ready or (self._thread and self._thread.is_alive()):
            return
        arguments = self._blocks, self._num_ready, wanted
        self._num_ready = wanted
        self._thread = threading.Thread(target=self._make, args=arguments, name="pages-ahead", daemon=True)
        self._thread.start()

    def _make(self, blocks: CpuBlockCopy, first: int, last: int) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        blocks.touch(self._parts, first, last)
