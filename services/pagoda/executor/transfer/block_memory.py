"""A KV cache as bytes: reads and writes whole blocks, and knows nothing of what they hold.

In a cache of [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], a block is num_layers * 2 parts that are
apart. In a piece they are side by side: [parts, n, part_bytes] for n blocks.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.transfer.slots import Bytes
from pagoda.kernels.cpu.block_copy import CpuBlockCopy
from pagoda.kernels.cpu.library import library

Int64 = NDArray[np.int64]


class BlockMemory(Protocol):
    """Usable from several threads at once, for different blocks."""

    num_blocks: int
    block_bytes: int

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        """Fills `piece`, [len(block_ids) * block_bytes]. When it returns, the blocks may be overwritten."""

    def write(self, block_ids: Int64, piece: Bytes, chosen: NDArray[np.bool_] | None = None) -> None:
        """The reverse. When it returns, all that starts to compute later sees the blocks.

        chosen: [blocks in the piece]; which of them block_ids are. All, if not given.
        """


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
        num_parts, self.num_blocks, self._part_bytes = parts.shape
        self.block_bytes = num_parts * self._part_bytes

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        self._copy.gather(self._cache, block_ids, self._apart(piece))

    def write(self, block_ids: Int64, piece: Bytes, chosen: NDArray[np.bool_] | None = None) -> None:
        positions = None if chosen is None else np.flatnonzero(chosen)
        self._copy.scatter(self._cache, block_ids, self._apart(piece), positions)

    def _apart(self, piece: Bytes) -> Bytes:
        return piece.reshape(len(self._cache), -1, self._part_bytes)


class NumpyBlocks:
    """A cache in the CPU's memory, where nothing can be compiled.

    By numpy, which copies in the calling thread alone and without the GIL. Torch would start a team of threads for each
    thread that calls it.
    """

    def __init__(self, parts: Tensor) -> None:
        """parts: [parts, num_blocks, part_bytes] uint8"""
        num_parts, self.num_blocks, part_bytes = parts.shape
        self.block_bytes = num_parts * part_bytes
        # One row per part of a block; rows of one type are copied whole.
        self._row = np.dtype((np.void, part_bytes))
        self._rows = parts.numpy().view(self._row).reshape(-1)
        self._first_rows = np.arange(num_parts)[:, None] * self.num_blocks

    def read(self, block_ids: Int64, piece: Bytes) -> None:
        rows = (self._first_rows + block_ids).reshape(-1)
        # The other modes copy once more. Nothing is clipped: who calls has checked the ids.
        np.take(self._rows, rows, out=piece.view(self._row), mode="clip")

    def write(self, block_ids: Int64, piece: Bytes, chosen: NDArray[np.bool_] | None = None) -> None:
        content = piece.view(self._row)
        if chosen is not None:
            content = content.reshape(len(self._first_rows), -1)[:, chosen].reshape(-1)
        self._rows[(self._first_rows + block_ids).reshape(-1)] = content


class DeviceBlocks:
    """A cache in a GPU's memory; each piece crosses the bus at once."""

    def __init__(self, parts: Tensor) -> None:
        """parts: [parts, num_blocks, part_bytes] uint8"""
        self._parts = parts
        self.num_blocks = parts.shape[1]
        self.block_bytes = parts.shape[0] * parts.shape[2]

    @torch.inference_mode()
    def read(self, block_ids: Int64, piece: Bytes) -> None:
        blocks = self._parts.index_select(1, torch.from_numpy(block_ids).to(self._parts.device))
        # Waits for the device.
        torch.from_numpy(piece).copy_(blocks.view(-1))

    @torch.inference_mode()
    def write(self, block_ids: Int64, piece: Bytes, chosen: NDArray[np.bool_] | None = None) -> None:
        content = piece.reshape(self._parts.shape[0], -1, self._parts.shape[2])
        if chosen is not None:
            content = content[:, chosen]
        device = self._parts.device
        # Torch warns of arrays that are read-only, though it only reads here.
        blocks = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(content.shape).to(device)
        self._parts.index_copy_(1, torch.from_numpy(block_ids).to(device), blocks)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
