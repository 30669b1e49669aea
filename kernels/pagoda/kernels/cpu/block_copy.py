"""Copies of cache blocks in C++ (src/block_copy.cpp): in the calling thread alone, and without the GIL."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pagoda.kernels.cpu.library import POINTER, SIZE, declared

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class CpuBlockCopy:
    """Both arrays are contiguous; ids are not checked.

    cache: [num_parts, num_blocks, part_bytes]
    piece: [num_parts, blocks of the piece, part_bytes]
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._gather = declared(library.pagoda_gather_blocks, [POINTER, *[SIZE] * 3, POINTER, SIZE, POINTER])
        self._scatter = declared(
            library.pagoda_scatter_blocks, [POINTER, *[SIZE] * 3, POINTER, POINTER, SIZE, POINTER, SIZE]
        )

    def gather(self, cache: Bytes, block_ids: Int64, piece: Bytes) -> None:
        """piece[:, i] = cache[:, block_ids[i]]"""
        ids = np.ascontiguousarray(block_ids)
        self._gather(cache.ctypes.data, *cache.shape, ids.ctypes.data, len(ids), piece.ctypes.data)

    def scatter(self, cache: Bytes, block_ids: Int64, piece: Bytes, positions: Int64 | None = None) -> None:
        """cache[:, block_ids[i]] = piece[:, positions[i]], or piece[:, i]; past the processor's cache"""
        ids = np.ascontiguousarray(block_ids)
        chosen = None if positions is None else np.ascontiguousarray(positions)
        self._scatter(
            cache.ctypes.data,
            *cache.shape,
            ids.ctypes.data,
            None if chosen is None else chosen.ctypes.data,
            len(ids),
            piece.ctypes.data,
            piece.shape[1],
        )
