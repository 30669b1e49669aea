"""A picture of a block pool, small enough to look at. Knows numpy arrays, not the pool they come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda.v1.scheduler_pb2 import BlockState

# What BLOCK_STATE_MIXED leaves of a byte.
_FULL = 127


def block_map(ref_counts: NDArray[np.int32], cached: NDArray[np.bool_], num_cells: int) -> NDArray[np.uint8]:
    """The states of all blocks in at most `num_cells` cells of neighbours, as `BlockMap.cells` has them.

    ref_counts, cached: [num_blocks], num_blocks > 0; how many rows hold a block, and whether it holds a prefix while
        none does
    num_cells: > 0
    """
    states = np.full(len(ref_counts), BlockState.BLOCK_STATE_FREE, dtype=np.uint8)
    states[cached] = BlockState.BLOCK_STATE_CACHED
    states[ref_counts == 1] = BlockState.BLOCK_STATE_REFERENCED
    states[ref_counts > 1] = BlockState.BLOCK_STATE_SHARED
    if len(states) <= num_cells:
        return states
    # Cell i: blocks [bounds[i], bounds[i + 1]); none is empty, as there are more blocks than cells.
    bounds = np.arange(num_cells + 1) * len(states) // num_cells
    begins = bounds[:-1]
    lowest, highest = np.minimum.reduceat(states, begins), np.maximum.reduceat(states, begins)
    held = np.add.reduceat(ref_counts > 0, begins, dtype=np.int64)
    mixed = BlockState.BLOCK_STATE_MIXED + held * _FULL // np.diff(bounds)
    return np.where(lowest == highest, lowest, mixed).astype(np.uint8)
