"""Integer arrays inside protobuf `bytes` fields: little-endian, read without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_U32 = np.dtype("<u4")
_U64 = np.dtype("<u8")

U32Array = NDArray[np.uint32]
U64Array = NDArray[np.uint64]


def pack_u32(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """`values` as u32[]. Raises OverflowError for a value outside [0, 2**32)."""
    return _pack(values, _U32)


def pack_u64(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """`values` as u64[]. Raises OverflowError for a value outside [0, 2**64)."""
    return _pack(values, _U64)


def unpack_u32(data: bytes) -> U32Array:
    """The u32[] in `data`: a read-only view [n]. Raises ValueError when its length is no multiple of 4."""
    return np.frombuffer(data, dtype=_U32)


def unpack_u64(data: bytes) -> U64Array:
    """The u64[] in `data`: a read-only view [n]. Raises ValueError when its length is no multiple of 8."""
    return np.frombuffer(data, dtype=_U64)


def _pack(values: Sequence[int] | NDArray[np.integer], dtype: np.dtype[np.unsignedinteger]) -> bytes:
    if isinstance(values, np.ndarray):
        if values.dtype == dtype:
            return values.tobytes()
        # numpy casts arrays silently; a negative number here is a bug of the caller and must not travel.
        if values.size and (values.min() < 0 or int(values.max()) > int(np.iinfo(dtype).max)):
            raise OverflowError(f"value outside the range of {dtype}")
        return values.astype(dtype, copy=False).tobytes()
    return np.array(values, dtype=dtype).tobytes()
