"""Scatters keys and values into the paged cache."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.triton.fp8 import cache_view, to_cache


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Scatter new K/V into the paged cache, in place.

    k, v: [num_tokens, num_kv_heads, head_dim]; heads of a token side by side
    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim]; slots side by side in a block, their heads too.
    In float8_e4m3fn, k / k_scale and v / v_scale are stored, at most 448 in size
    slot_mapping: [num_tokens] int64; -1 = padding, skipped
    """
    num_tokens, num_kv_heads, head_dim = k.shape
    width = num_kv_heads * head_dim
    _store_kv[(num_tokens,)](
        k,
        v,
        cache_view(k_cache),
        cache_view(v_cache),
        slot_mapping,
        k.stride(0),
        v.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_scale,
        v_scale,
        BLOCK_SIZE=k_cache.shape[1],
        WIDTH=width,
        PADDED_WIDTH=triton.next_power_of_2(width),
    )


@triton.jit
def _store_kv(
    k,
    v,
    k_cache,
    v_cache,
    slot_mapping,
    k_stride,
    v_stride,
    block_stride,
    slot_stride,
    k_scale,
    v_scale,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    columns = tl.arange(0, PADDED_WIDTH)
    mask = columns < WIDTH
    place = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * slot_stride + columns
    keys = tl.load(k + token * k_stride + columns, mask=mask)
    tl.store(k_cache + place, to_cache(keys, k_scale, k_cache.dtype.element_ty), mask=mask)
    values = tl.load(v + token * v_stride + columns, mask=mask)
    tl.store(v_cache + place, to_cache(values, v_scale, v_cache.dtype.element_ty), mask=mask)
