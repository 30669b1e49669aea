"""An executor's batch without tokens and blocks: just enough of the contract to know which rows sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda.rpc.arrays import unpack_u32
from pagoda.v1 import step_pb2


class EchoBatch:
    """Applies plans; raises AssertionError for one that contradicts the batch."""

    def __init__(self, max_num_seqs: int) -> None:
        # Tokens left to compute; 0 = the row is free. A row that samples has one again, the one it sampled.
        self._num_left = np.zeros(max_num_seqs, np.int64)
        self._last_step = 0

    def run(self, plan: step_pb2.StepPlan) -> NDArray[np.uint32]:
        """The rows that sample in this step, ascending."""
        assert plan.step == self._last_step + 1, "steps come in order"
        self._last_step = plan.step
        num_left = self._num_left
        if plan.ended_rows:
            ended = unpack_u32(plan.ended_rows)
            assert num_left[ended].all(), "a free row ends"
            num_left[ended] = 0
        for start in plan.started_rows:
            assert num_left[start.row] == 0, "a row starts that is taken"
            num_left[start.row] = len(start.token_ids) // 4 - start.num_computed_tokens
            assert num_left[start.row] > 0, "a row starts with nothing to compute"
        samples = num_left == 1
        if plan.chunk_rows:
            rows = unpack_u32(plan.chunk_rows)
            assert (num_left[rows] > 1).all(), "a chunk of a row that runs in any case"
            num_left[rows] -= unpack_u32(plan.chunk_num_tokens)
            assert (num_left[rows] >= 0).all(), "a chunk beyond the known tokens"
            done = rows[num_left[rows] == 0]
            samples[done] = True
            num_left[done] = 1
        return np.flatnonzero(samples).astype(np.uint32)
