"""Rotary embedding of a step's queries and keys, norms before it, and the cache write after it: one pass over qkv."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.triton.fp8 import cache_view, to_cache

# Numbers that one program takes: a few heads.
_PROGRAM_WIDTH = 1024


def norm_and_rotate(
    qkv: Tensor,
    num_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norms and rotates queries and keys in place; arguments as in `rope_and_store`."""
    _launch(qkv, num_kv_heads, cos, sin, None, None, None, q_norm, k_norm, eps, 1.0, 1.0)


def rope_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Norms and rotates queries in place; norms and rotates keys into the cache, and values without either.

    qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]; heads of a token side by side: queries, keys, values
    cos, sin: [num_tokens, half] float32, half <= head_dim / 2; which dimensions rotate: see `reference.apply_rope`
    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim]; float8 and scales: see `store_kv`
    slot_mapping: [num_tokens] int64; -1 = keys and values are not stored
    q_norm, k_norm: both or none, [head_dim]: weights of an RMS norm per head, rounded as in `reference.rms_norm`

    Keys and values in qkv stay as they were.
    """
    _launch(qkv, k_cache.shape[2], cos, sin, k_cache, v_cache, slot_mapping, q_norm, k_norm, eps, k_scale, v_scale)


def _launch(
    qkv: Tensor,
    num_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    slot_mapping: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_scale: float,
    v_scale: float,
) -> None:
    num_tokens, heads, head_dim = qkv.shape
    half = cos.shape[1]
    # Values are looked at only when they are stored.
    rows = heads if k_cache is not None else heads - num_kv_heads
    heads_per_program = min(triton.next_power_of_2(rows), max(1, _PROGRAM_WIDTH // triton.next_power_of_2(head_dim)))
    _norm_rotate_store[num_tokens, triton.cdiv(rows, heads_per_program)](
        qkv,
        cos,
        sin,
        None if k_cache is None else cache_view(k_cache),
        None if v_cache is None else cache_view(v_cache),
        slot_mapping,
        q_norm,
        k_norm,
        eps,
        qkv.stride(0),
        0 if k_cache is None else k_cache.stride(0),
        0 if k_cache is None else k_cache.stride(1),
        0 if k_cache is None else k_cache.stride(2),
        k_scale,
        v_scale,
        NUM_HEADS=heads - 2 * num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        PADDED_HALF=triton.next_power_of_2(half),
        PADDED_REST=triton.next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0,
        HEADS=heads_per_program,
        BLOCK_SIZE=1 if k_cache is None else k_cache.shape[1],
        STORE=k_cache is not None,
        NORM=q_norm is not None,
        ROUND_BEFORE_WEIGHT=q_norm is not None and q_norm.dtype == qkv.dtype and qkv.dtype != torch.float32,
        num_warps=4,
    )


@triton.jit
def _norm_rotate_store(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    slot_mapping,
    q_norm,
    k_norm,
    eps,
    qkv_stride,
    block_stride,
    slot_stride,
    head_stride,
    k_scale,
    v_scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    PADDED_REST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STORE: tl.constexpr,
    NORM: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
):
    """HEADS heads of one token. A head is its first half, its second half and the rest, which does not rotate."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_query = heads < NUM_HEADS
    rotates = heads < NUM_HEADS + NUM_KV_HEADS
    there = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    dtype = qkv.dtype.element_ty

    halves = tl.arange(0, PADDED_HALF)
    half_mask = there[:, None] & (halves < HALF)[None, :]
    rows = qkv + token * qkv_stride + heads[:, None] * HEAD_DIM
    first = tl.load(rows + halves[None, :], mask=half_mask, other=0.0).to(tl.float32)
    second = tl.load(rows + HALF + halves[None, :], mask=half_mask, other=0.0).to(tl.float32)
    if PADDED_REST:
        rests = 2 * HALF + tl.arange(0, PADDED_REST)
        rest_mask = there[:, None] & (rests < HEAD_DIM)[None, :]
        rest = tl.load(rows + rests[None, :], mask=rest_mask, other=0.0).to(tl.float32)

    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if PADDED_REST:
            squares += tl.sum(rest * rest, 1)
        factors = tl.where(rotates, tl.rsqrt(squares / HEAD_DIM + eps), 1.0)[:, None]
        first = _weigh(first * factors, q_norm, k_norm, is_query, rotates, halves, HALF, ROUND_BEFORE_WEIGHT, dtype)
        second = _weigh(
            second * factors, q_norm + HALF, k_norm + HALF, is_query, rotates, halves, HALF, ROUND_BEFORE_WEIGHT, dtype
        )
        if PADDED_REST:
            rest = _weigh(
                rest * factors, q_norm, k_norm, is_query, rotates, rests, HEAD_DIM, ROUND_BEFORE_WEIGHT, dtype
            )

    angles = token * HALF + halves
    cosines = tl.load(cos + angles, mask=halves < HALF, other=0.0)[None, :]
    sines = tl.load(sin + angles, mask=halves < HALF, other=0.0)[None, :]
    cosines = tl.where(rotates[:, None], cosines, 1.0)
    sines = tl.where(rotates[:, None], sines, 0.0)
    # Rounded to the model's dtype before the cache's, as when each step is a kernel of its own.
    new_first = (first * cosines - second * sines).to(dtype)
    new_second = (second * cosines + first * sines).to(dtype)

    # Keys go back where they came from, unless they go to the cache.
    in_place = (is_query if STORE else rotates)[:, None]
    tl.store(rows + halves[None, :], new_first, mask=half_mask & in_place)
    tl.store(rows + HALF + halves[None, :], new_second, mask=half_mask & in_place)
    if PADDED_REST:
        rest = rest.to(dtype)
        tl.store(rows + rests[None, :], rest, mask=rest_mask & in_place)

    if STORE:
        slot = tl.load(slot_mapping + token)
        if slot >= 0:
            place = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * slot_stride
            k_rows = k_cache + place + (heads - NUM_HEADS)[:, None] * head_stride
            v_rows = v_cache + place + (heads - NUM_HEADS - NUM_KV_HEADS)[:, None] * head_stride
            is_key = (rotates & (heads >= NUM_HEADS))[:, None]
            is_value = (there & (heads >= NUM_HEADS + NUM_KV_HEADS))[:, None]
            k_type: tl.constexpr = k_cache.dtype.element_ty
            tl.store(k_rows + halves[None, :], to_cache(new_first, k_scale, k_type), mask=half_mask & is_key)
            tl.store(k_rows + HALF + halves[None, :], to_cache(new_second, k_scale, k_type), mask=half_mask & is_key)
            tl.store(v_rows + halves[None, :], to_cache(new_first, v_scale, k_type), mask=half_mask & is_value)
            tl.store(v_rows + HALF + halves[None, :], to_cache(new_second, v_scale, k_type), mask=half_mask & is_value)
            if PADDED_REST:
                tl.store(k_rows + rests[None, :], to_cache(rest, k_scale, k_type), mask=rest_mask & is_key)
                tl.store(v_rows + rests[None, :], to_cache(rest, v_scale, k_type), mask=rest_mask & is_value)


@triton.jit
def _weigh(
    x,
    q_norm,
    k_norm,
    is_query,
    rotates,
    dims,
    BOUND: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
    dtype: tl.constexpr,
):
    """x [HEADS, dims] float32, normed, times the weights; values (heads that do not rotate) have none."""
    q_weights = tl.load(q_norm + dims, mask=dims < BOUND, other=0.0).to(tl.float32)[None, :]
    k_weights = tl.load(k_norm + dims, mask=dims < BOUND, other=0.0).to(tl.float32)[None, :]
    weights = tl.where(is_query[:, None], q_weights, k_weights)
    weights = tl.where(rotates[:, None], weights, 1.0)
    if ROUND_BEFORE_WEIGHT:
        x = x.to(dtype).to(tl.float32)
    return (x * weights).to(dtype).to(tl.float32)
