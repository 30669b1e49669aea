"""A KV cache in a GPU's memory as bytes: `block_memory.BlockMemory`, by torch. Runs on CPU tensors too, for tests.

All copies are on a stream of their own: they do not queue behind the steps, nor steps behind them. So the device orders
nothing between the two. Whoever reads a block knows that it has been computed, and whoever uses one that was written
comes after `write` has returned (see `pagoda.executor.transfers.Transfers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class DeviceBlocks:
    """One cache. Each piece crosses the bus at once, from or to pinned memory: other memory the driver copies twice."""

    def __init__(self, parts: Tensor) -> None:
        """parts: [parts, num_blocks, part_bytes] uint8"""
        self.device = parts.device
        self.num_parts, self.num_blocks, self.part_bytes = parts.shape
        self.block_bytes = self.num_parts * self.part_bytes
        self._word = _widest(self.part_bytes)
        # [parts, num_blocks, words]
        self._parts = parts.view(self._word)
        self._stream = torch.cuda.Stream(parts.device) if parts.is_cuda else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def read(self, block_ids: Int64, piece: Bytes) -> None:
        host = self._pinned(len(block_ids))
        with self._waiting():
            host.copy_(self._select(self._parts, block_ids).view(torch.uint8), non_blocking=True)
        np.copyto(piece, host.view(-1).numpy())

    @torch.inference_mode()
    def write(self, block_ids: Int64, source: Tensor, source_ids: Int64) -> None:
        with self._waiting():
            if source.device.type == "cpu":
                blocks = self._pinned(len(source_ids))
                # Nothing is clipped: who calls has checked the ids. Torch would start a team of threads.
                np.take(source.numpy(), source_ids, axis=1, out=blocks.numpy(), mode="clip")
                blocks = blocks.view(self._word)
            else:
                blocks = self._select(source.view(self._word), source_ids)
            blocks = blocks.to(self._parts.device, non_blocking=True)
            self._parts.index_copy_(1, self._indices(block_ids, self._parts), blocks)

    def _pinned(self, num_blocks: int) -> Tensor:
        """A piece in the CPU's memory. Torch keeps what has been pinned, and hands it out again."""
        shape = (self.num_parts, num_blocks, self.part_bytes)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)

    def _select(self, parts: Tensor, block_ids: Int64) -> Tensor:
        return parts.index_select(1, self._indices(block_ids, parts))

    @staticmethod
    def _indices(block_ids: Int64, parts: Tensor) -> Tensor:
        return torch.from_numpy(block_ids).to(parts.device, non_blocking=True)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """What is launched here is done on the stream of this cache, and has been done afterwards."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()


def _widest(num_bytes: int) -> torch.dtype:
    """The widest integers that so many bytes can be taken for: torch copies one by one."""
    return next(
        (each for each in (torch.int64, torch.int32, torch.int16) if num_bytes % each.itemsize == 0), torch.uint8
    )
