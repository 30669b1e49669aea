"""One step of one executor: what it is told to do and what came of it. The fields are those of step.proto."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda.scheduler.core.request import Sampling


class RowStart(NamedTuple):
    """A request takes a row."""

    row: int
    token_ids: array[int]
    num_computed_tokens: int
    block_ids: Sequence[int]
    sampling: Sampling


class BlockCopies(NamedTuple):
    """Parallel: block sources[i] is copied to block targets[i]; all are read before one is written."""

    sources: Sequence[int] = ()
    targets: Sequence[int] = ()


NO_COPIES = BlockCopies()


class Push(NamedTuple):
    """Blocks go to another executor, to blocks that a grant names, from the first_position-th on."""

    number: int
    """Names the grant."""
    target: str
    """The other lane's id."""
    first_position: int
    block_ids: Sequence[int]


class Grant(NamedTuple):
    """Others may write to blocks until the grant is withdrawn: each once, in pushes that name it."""

    number: int
    block_ids: Sequence[int]


class StepPlan(NamedTuple):
    """Differences against the executor's batch, applied in the order of the fields.

    A row with exactly one token left to compute runs it in every step, without being named here.
    """

    step: int
    # Numbers of grants that are over; then new ones.
    withdrawn: Sequence[int] = ()
    grants: Sequence[Grant] = ()
    ended_rows: Sequence[int] = ()
    # They have what earlier steps computed.
    pushes: Sequence[Push] = ()
    # Cache to host memory, within the cache, host memory to cache.
    offloads: BlockCopies = NO_COPIES
    copies: BlockCopies = NO_COPIES
    loads: BlockCopies = NO_COPIES
    started_rows: Sequence[RowStart] = ()
    # Parallel: block_ids[i] becomes entry block_positions[i] of the block table of row block_rows[i].
    block_rows: Sequence[int] = ()
    block_positions: Sequence[int] = ()
    block_ids: Sequence[int] = ()
    # Parallel: rows with more than one token left to compute, and how many of them are computed now.
    chunk_rows: Sequence[int] = ()
    chunk_num_tokens: Sequence[int] = ()


class StepResult(NamedTuple):
    """rows, token_ids: parallel; the rows that sampled, ascending, and their tokens."""

    step: int
    rows: NDArray[np.uint32]
    token_ids: NDArray[np.uint32]
    forward_ns: int = 0
