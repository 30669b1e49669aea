"""A step's arrays on their way to the device: all in one piece, in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pagoda.executor.device.arrays import Array

# Kernels are compiled for pointers that 16 divides.
_ALIGNMENT = 16


class Staging:
    """Memory on the device that holds one step's arrays at a time."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._pinned = device.type == "cuda"

    @staticmethod
    def num_bytes(arrays: Sequence[Array]) -> int:
        """What `arrays` take."""
        return sum(_padded(array.nbytes) for array in arrays)

    def send(self, arrays: Sequence[Array]) -> list[int]:
        """Copies `arrays` to the device, in place of the last ones; returns the place of each.

        Leading arrays of the same shapes and dtypes always come to the same places, so a graph that was captured with
        them reads those that were sent last.
        """
        # A new piece each time, which torch takes back when the copy is done: the host never waits for an older one.
        packed = torch.empty(self.num_bytes(arrays), dtype=torch.uint8, pin_memory=self._pinned)
        host = packed.numpy()
        places, end = [], 0
        for array in arrays:
            host[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            places.append(end)
            end += _padded(array.nbytes)
        self._buffer[:end].copy_(packed, non_blocking=True)
        return places

    def tensor(self, place: int, array: Array) -> Tensor:
        """What was sent to `place`, of the shape and dtype of `array`."""
        part = self._buffer[place : place + array.nbytes]
        return part.view(torch.from_numpy(array[:0]).dtype).view(array.shape)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
