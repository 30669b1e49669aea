"""Reads the arrays of step plans. One that cannot be meant is a bug of the scheduler or of ours: a `PlanError`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda.errors import InternalError
from pagoda.rpc.arrays import unpack_u32

Int64 = NDArray[np.int64]


class PlanError(InternalError):
    """A step plan that contradicts itself or the batch."""

    reason = "BAD_STEP_PLAN"


def read_indices(data: bytes, name: str, bound: int) -> Int64:
    """The u32[] in `data`, each in [0, bound). Raises PlanError, which calls the array `name`."""
    if len(data) % 4:
        raise PlanError(f"{name} has {len(data)} bytes, which is no u32[]")
    indices = unpack_u32(data).astype(np.int64)
    if len(indices) and indices.max() >= bound:
        raise PlanError(f"{name} has {indices.max()}, which is outside [0, {bound})")
    return indices


def require_parallel(**arrays: Int64) -> None:
    """Raises PlanError, with their names, unless all are of one length."""
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise PlanError(f"parallel arrays differ in length: {lengths}")


def require_distinct(indices: Int64, name: str) -> None:
    """Raises PlanError unless every index is there once."""
    ordered = np.sort(indices)
    if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        raise PlanError(f"{name} has {twice[0]} more than once")


def require_all(holds: NDArray[np.bool_], rows: Int64, problem: str) -> None:
    """Raises PlanError for the first of `rows` that does not hold; both are [n]."""
    if not holds.all():
        raise PlanError(f"row {rows[~holds][0]} {problem}")
