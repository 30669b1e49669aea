"""A KV cache as bytes: reads and writes whole blocks, and knows nothing of what they hold.

In a cache of [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], a block is num_layers * 2 parts that are
apart. In a piece they are side by side: [parts, n, part_bytes] for n blocks, as in a cache of n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.transfer.device_blocks import DeviceBlocks
from pagoda.kernels.cpu.block_copy import CpuBlockCopy
from pagoda.kernels.cpu.library import library

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class BlockMemory(Protocol):
    """Usable from several threads at once, for different blocks."""

    device: torch.device
    num_parts: int
    num_blocks: int
    part_bytes: int
    block_bytes: int
    """Of all its parts."""

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        """Fills `piece`, [len(block_ids) * block_bytes]."""

    def write(self, block_ids: Int64, source: Tensor, source_ids: Int64) -> None:
        """block_ids[i] becomes what source_ids[i] is; when it returns, all that starts to compute later sees that.

        source: [parts, n, part_bytes] uint8, in the CPU's memory, or in a GPU's for a cache that is in one: a piece, or
        another cache
        """


@dataclass(frozen=True)
class Blocks:
    """Some blocks of a piece, or of another cache, in memory that this process can read."""

    source: Tensor
    """[parts, n, part_bytes] uint8"""
    ids: Int64
    """Which of the n they are."""


def piece_blocks(piece: Tensor, num_parts: int, num_blocks: int) -> Blocks:
    """All blocks of a piece, [bytes]."""
    return Blocks(piece.view(num_parts, num_blocks, -1), np.arange(num_blocks))


def as_tensor(memory: Bytes) -> Tensor:
    """The same memory, which nobody may write to if that is so for `memory`: torch has no such tensors, and warns."""
    return torch.from_numpy(np.asarray(_Writable(memory)))


class _Writable:
    """An array that says of itself that it can be written to."""

    def __init__(self, array: Bytes) -> None:
        # It lives as long as those that are made of this.
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def block_memory(cache: Tensor, block_axis: int) -> BlockMemory:
    """cache: contiguous, of any dtype; block i is what has the index i on `block_axis`"""
    num_parts = int(np.prod(cache.shape[:block_axis]))
    parts = cache.view(num_parts, cache.shape[block_axis], -1).view(torch.uint8)
    if cache.device.type != "cpu":
        return DeviceBlocks(parts)
    loaded = library()
    return NumpyBlocks(parts) if loaded is None else NativeBlocks(parts, CpuBlockCopy(loaded))


class NativeBlocks:
    """A cache in the CPU's memory."""

    def __init__(self, parts: Tensor, copy: CpuBlockCopy) -> None:
        """parts: [parts, num_blocks, part_bytes] uint8"""
        self._cache = parts.numpy()
        self._copy = copy
        self.device = parts.device
        self.num_parts, self.num_blocks, self.part_bytes = parts.shape
        self.block_bytes = self.num_parts * self.part_bytes

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        self._copy.gather(self._cache, block_ids, piece)

    def write(self, block_ids: Int64, source: Tensor, source_ids: Int64) -> None:
        self._copy.copy(self._cache, block_ids, source.numpy(), source_ids)


class NumpyBlocks:
    """A cache in the CPU's memory, where nothing can be compiled.

    By numpy, which copies in the calling thread alone and without the GIL. Torch would start a team of threads for each
    thread that calls it.
    """

    def __init__(self, parts: Tensor) -> None:
        """parts: [parts, num_blocks, part_bytes] uint8"""
        self.device = parts.device
        self.num_parts, self.num_blocks, self.part_bytes = parts.shape
        self.block_bytes = self.num_parts * self.part_bytes
        # One row per part of a block; rows of one type are copied whole.
        self._row = np.dtype((np.void, self.part_bytes))
        self._rows = parts.numpy().view(self._row).reshape(-1)
        self._first_rows = np.arange(self.num_parts)[:, None] * self.num_blocks

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        rows = (self._first_rows + block_ids).reshape(-1)
        # The other modes copy once more. Nothing is clipped: who calls has checked the ids.
        np.take(self._rows, rows, out=piece.view(self._row), mode="clip")

    def write(self, block_ids: Int64, source: Tensor, source_ids: Int64) -> None:
        content = source.numpy().view(self._row).reshape(self.num_parts, -1)[:, source_ids]
        self._rows[(self._first_rows + block_ids).reshape(-1)] = content.reshape(-1)
