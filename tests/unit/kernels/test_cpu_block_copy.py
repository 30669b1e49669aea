"""Native copies of cache blocks against indexing, on every instruction level that this processor has."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.kernels.cpu.block_copy import Bytes, CpuBlockCopy
from pagoda.kernels.cpu.library import LEVELS, best_level, library

NUM_PARTS, NUM_BLOCKS = 3, 11
IDS = np.array([7, 0, 10, 4])


@pytest.fixture(scope="module", params=list(LEVELS)[list(LEVELS).index(best_level()) :])
def native(request: pytest.FixtureRequest) -> CpuBlockCopy:
    loaded = library(request.param)
    assert loaded, "a C++ compiler is needed"
    return CpuBlockCopy(loaded)


def numbers(num_blocks: int, part_bytes: int, offset: int) -> Bytes:
    """[NUM_PARTS, num_blocks, part_bytes], `offset` bytes behind where an array begins."""
    size = NUM_PARTS * num_blocks * part_bytes
    memory = np.random.default_rng(part_bytes).integers(0, 256, size + offset, np.uint8)
    return memory[offset:].reshape(NUM_PARTS, num_blocks, part_bytes)


# Of no whole lines, shorter than one, and of lines that are not aligned.
@pytest.mark.parametrize("part_bytes", [1, 40, 64, 100, 2048, 4096 + 24])
@pytest.mark.parametrize("offset", [0, 3, 16])
def test_blocks_are_copied_and_nothing_else(native: CpuBlockCopy, part_bytes: int, offset: int) -> None:
    cache = numbers(NUM_BLOCKS, part_bytes, offset)
    piece = np.zeros((NUM_PARTS, len(IDS), part_bytes), np.uint8)
    native.gather(cache, IDS, piece)
    np.testing.assert_array_equal(piece, cache[:, IDS])

    source = numbers(2 * NUM_BLOCKS, part_bytes, offset + 1)
    source_ids = np.array([2, 0, 21, 9])
    expected = cache.copy()
    expected[:, IDS] = source[:, source_ids]
    native.copy(cache, IDS, source, source_ids)
    np.testing.assert_array_equal(cache, expected)


def test_no_blocks(native: CpuBlockCopy) -> None:
    cache, none = numbers(NUM_BLOCKS, 64, 0), np.zeros(0, np.int64)
    before = cache.copy()
    piece = np.zeros((NUM_PARTS, 0, 64), np.uint8)
    native.gather(cache, none, piece)
    native.copy(cache, none, piece, none)
    np.testing.assert_array_equal(cache, before)
