"""float8_e4m3fn (https://arxiv.org/abs/2209.05433) in kernels, also where the GPU has no instruction for it.

A cache in float8 is seen as uint8 on such a GPU, and its bits are taken apart with integers: `cache_view` decides.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.triton.tuning import tuning_for

MAX_E4M3 = 448.0
_MAX: tl.constexpr = tl.constexpr(MAX_E4M3)


def cache_view(cache: Tensor) -> Tensor:
    """The cache as kernels take it: float8_e4m3fn as uint8 where Triton has no conversion for it."""
    if cache.dtype == torch.float8_e4m3fn and not tuning_for(cache.device).native_fp8:
        return cache.view(torch.uint8)
    return cache


@triton.jit
def from_cache(x, dtype: tl.constexpr):
    """Numbers of the cache, or their bits as uint8, in `dtype`; exact, but for bits that are NaN."""
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        # The same fields in float16, whose exponents are biased by 15 instead of 7.
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        x = half.to(tl.float32) * 256.0
    elif x.dtype == tl.float8e4nv:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def to_cache(x, scale, dtype: tl.constexpr):
    """x in the dtype of the cache's elements. In float8 (uint8 for its bits) x / scale, at most 448, is stored."""
    if dtype == tl.uint8:
        x = _clamp(tl.div_rn(x.to(tl.float32), scale))
        size = tl.abs(x)
        # Round half to even: 20 bits of the mantissa go; exponents are biased by 7 instead of 127.
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 numbers are multiples of 2^-9, which is the unit in the last place of 2^14.
        small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0.015625, small, normal)
        return (code | tl.where(x < 0, 0x80, 0)).to(tl.uint8)
    if dtype == tl.float8e4nv:
        x = _clamp(tl.div_rn(x.to(tl.float32), scale))
    return x.to(dtype)


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, -_MAX), _MAX)
