"""What is done to whole cache blocks in C++ (src/block_copy.cpp): in the calling thread alone, and without the GIL."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pagoda.kernels.cpu.library import POINTER, SIZE, declared

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class CpuBlockCopy:
    """All arrays are contiguous; ids are not checked.

    cache: [num_parts, num_blocks, part_bytes]
    piece: [num_parts, blocks of the piece, part_bytes]
    source: a piece, or another cache
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._gather = declared(library.pagoda_gather_blocks, [POINTER, *[SIZE] * 3, POINTER, SIZE, POINTER])
        self._copy = declared(library.pagoda_copy_blocks, [POINTER, *[SIZE] * 3, POINTER, POINTER, SIZE, POINTER, SIZE])
        self._touch = declared(library.pagoda_touch_blocks, [POINTER, *[SIZE] * 5])

    def gather(self, cache: Bytes, block_ids: Int64, piece: Bytes) -> None:
        """piece[:, i] = cache[:, block_ids[i]]; `piece` is in the processor's cache then, as far as it fits"""
        ids = np.ascontiguousarray(block_ids)
        self._gather(cache.ctypes.data, *cache.shape, ids.ctypes.data, len(ids), piece.ctypes.data)

    def copy(self, cache: Bytes, block_ids: Int64, source: Bytes, source_ids: Int64) -> None:
        """cache[:, block_ids[i]] = source[:, source_ids[i]], past the processor's cache"""
        ids, theirs = np.ascontiguousarray(block_ids), np.ascontiguousarray(source_ids)
        self._copy(
            cache.ctypes.data,
            *cache.shape,
            ids.ctypes.data,
            theirs.ctypes.data,
            len(ids),
            source.ctypes.data,
            source.shape[1],
        )

    def touch(self, cache: Bytes, first: int, last: int) -> None:
        """cache[:, first:last] has its pages then; other threads may use it meanwhile"""
        self._touch(cache.ctypes.data, *cache.shape, first, last)
