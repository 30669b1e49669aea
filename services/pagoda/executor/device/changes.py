"""What a plan changes in the block tables, as places in a table of all rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda.executor.plan_arrays import Int64
from pagoda.rpc.arrays import unpack_u32
from pagoda.v1 import step_pb2

Int32 = NDArray[np.int32]


def table_changes(plan: step_pb2.StepPlan, width: int) -> tuple[Int64, Int32] | tuple[()]:
    """Places [n], each once, in a table of `width` entries per row, and the blocks [n] that they get; () for none.

    The plan was applied to the batch, so it is a sound one.
    """
    if not (plan.started_rows or plan.block_ids):
        return ()
    places, blocks = [], []
    for start in plan.started_rows:
        ids = unpack_u32(start.block_ids)
        places.append(start.row * width + np.arange(len(ids)))
        blocks.append(ids)
    places.append(unpack_u32(plan.block_rows).astype(np.int64) * width + unpack_u32(plan.block_positions))
    blocks.append(unpack_u32(plan.block_ids))
    all_places, all_blocks = np.concatenate(places), np.concatenate(blocks)
    # Of several blocks for one place the last stays; a device would write them in any order.
    unique, last = np.unique(all_places[::-1], return_index=True)
    return unique, all_blocks[::-1][last].astype(np.int32)
