"""Memory in equal parts, of which the one that came back last is handed out first: it is still in the CPU's cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Slots:
    """Not thread-safe."""

    def __init__(self, memory: Bytes) -> None:
        """memory: [num_slots, slot_bytes]; pages that are never used cost nothing, if it is not initialized"""
        self.memory = memory
        self._free = list(range(len(memory) - 1, -1, -1))

    def take(self) -> int | None:
        """The index of a free slot; None if there is none."""
        return self._free.pop() if self._free else None

    @property
    def all_free(self) -> bool:
        return len(self._free) == len(self.memory)

    def give(self, index: int) -> None:
        """The slot is free again."""
        self._free.append(index)
