from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u32, unpack_u64


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_u32_round_trip(values: list[int]) -> None:
    assert unpack_u32(pack_u32(values)).tolist() == values
    assert pack_u32(np.array(values, dtype=np.int64)) == pack_u32(values)


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_u64_round_trip(values: list[int]) -> None:
    assert unpack_u64(pack_u64(values)).tolist() == values


def test_layout_is_little_endian() -> None:
    assert pack_u32([1, 256]) == b"\x01\x00\x00\x00\x00\x01\x00\x00"


@pytest.mark.parametrize("values", [[-1], [2**32], np.array([-1]), np.array([2**32])])
def test_values_out_of_range_do_not_travel(values: list[int]) -> None:
    with pytest.raises(OverflowError):
        pack_u32(values)


def test_a_torn_array_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        unpack_u32(b"\x00" * 6)
