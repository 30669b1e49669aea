"""RMS norm (https://arxiv.org/abs/1910.07467), alone and after an addition to the residual stream."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight; shapes and rounding as in `reference.rms_norm`, rows of x side by side."""
    out = torch.empty_like(x)
    _launch(x, None, weight, out, eps)
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds delta to x in place, rounded to its dtype; returns the norm of the sum.

    x, delta: [..., dim], contiguous; weight: [dim] as in `reference.rms_norm`
    """
    out = torch.empty_like(x)
    _launch(x, delta, weight, out, eps)
    return out


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, out: Tensor, eps: float) -> None:
    dim = x.shape[-1]
    width = triton.next_power_of_2(dim)
    _rms_norm[(x.numel() // dim,)](
        x,
        delta,
        weight,
        out,
        eps,
        DIM=dim,
        WIDTH=width,
        ADD=delta is not None,
        ROUND_BEFORE_WEIGHT=weight.dtype == x.dtype and x.dtype != torch.float32,
        num_warps=min(16, max(1, width // 512)),
    )


@triton.jit
def _rms_norm(
    x,
    delta,
    weight,
    out,
    eps,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
):
    """One row."""
    start = tl.program_id(0).to(tl.int64) * DIM
    columns = tl.arange(0, WIDTH)
    mask = columns < DIM
    dtype = out.dtype.element_ty
    row = tl.load(x + start + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        row += tl.load(delta + start + columns, mask=mask, other=0.0).to(tl.float32)
        row = row.to(dtype)
        tl.store(x + start + columns, row, mask=mask)
        row = row.to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, 0) / DIM + eps)
    if ROUND_BEFORE_WEIGHT:
        row = row.to(dtype).to(tl.float32)
    row *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + start + columns, row.to(dtype), mask=mask)
