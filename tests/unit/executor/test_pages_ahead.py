"""Pages of blocks that come next are there before they are needed, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pagoda.executor.kv_cache import KvLayout, allocate
from pagoda.executor.pages_ahead import PagesAhead

# 4 parts of 16 MiB: 2 layers, blocks of 4 KiB.
LAYOUT = KvLayout(4096, 16, 2, 2, 64, torch.bfloat16)


def resident_bytes(cache: Tensor) -> int:
    """Of the memory that the cache is in."""
    begin, end = cache.data_ptr(), cache.data_ptr() + cache.nbytes
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (area := line.split(" ")[0]) and not area.endswith(":"):
            first, last = (int(address, 16) for address in area.split("-"))
            inside = first < end and begin < last
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def wait(pages: PagesAhead) -> None:
    assert pages._thread
    pages._thread.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does")
def test_the_next_blocks_have_pages_and_the_others_none() -> None:
    cache = allocate(LAYOUT, torch.device("cpu"))
    assert resident_bytes(cache) < 1 << 20
    pages = PagesAhead(cache)
    wait(pages)
    # Three huge pages' worth in each part, and at most the ends of two more.
    assert 24 << 20 <= resident_bytes(cache) <= 32 << 20
    pages.use(511)
    wait(pages)
    assert resident_bytes(cache) <= 32 << 20
    pages.use(512)
    wait(pages)
    assert resident_bytes(cache) >= 32 << 20
    pages.use(4095)
    wait(pages)
    assert resident_bytes(cache) == 64 << 20


def test_blocks_that_are_there_keep_what_they_hold() -> None:
    cache = allocate(LAYOUT, torch.device("cpu"))
    cache[:, :, ::100] = 3.0
    pages = PagesAhead(cache)
    wait(pages)
    pages.use(4095)
    wait(pages)
    assert (cache[:, :, ::100] == 3.0).all()
    assert not cache[:, :, 1::100].any()
