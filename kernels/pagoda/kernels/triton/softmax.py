"""One step of attention's loop over keys, for decoding and for prompts.

Softmax is computed on the way, with a running maximum (https://arxiv.org/abs/1805.02867, arxiv.org/abs/2205.14135).
Scores are kept in units of log2, since GPUs have an instruction for 2**x.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from pagoda.kernels.triton.fp8 import from_cache

LOG2_E = 1.4426950408889634
_LOG2_E: tl.constexpr = tl.constexpr(LOG2_E)


@triton.jit
def attend_keys(
    q,
    out,
    top,
    total,
    k_cache,
    v_cache,
    block_table,
    first_key,
    visible_start,
    visible_end,
    query_positions,
    kv_head,
    block_stride,
    slot_stride,
    head_stride,
    scale,
    soft_cap,
    window,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds the keys at positions [first_key, first_key + KEYS) to a running softmax.

    q: [rows, WIDTH]; out: [rows, WIDTH] float32, weighted sum of values so far, not divided by `total`
    top, total: [rows] float32; largest score so far and sum of weights relative to it
    block_table: pointer to the sequence's row
    visible_start, visible_end: positions outside [start, end) are never read
    query_positions: [rows]
    scale: of q k^T, with log2(e) unless SOFT_CAP
    MASKED: some query may not see some of these keys; if not, all see all

    Returns the new out, top, total.
    """
    positions = first_key + tl.arange(0, KEYS)
    dims = tl.arange(0, WIDTH)
    if MASKED:
        inside = (positions >= visible_start) & (positions < visible_end)
        blocks = tl.load(block_table + positions // BLOCK_SIZE, mask=inside, other=0)
    else:
        blocks = tl.load(block_table + positions // BLOCK_SIZE)
    # 64 bits: a cache has more than 2**31 numbers.
    slots = blocks.to(tl.int64) * block_stride + (positions % BLOCK_SIZE) * slot_stride + kv_head * head_stride

    # [WIDTH, KEYS]. Keys that nobody sees may be NaN: their scores are replaced below.
    k_pointers = k_cache + slots[None, :] + dims[:, None]
    if WIDTH == HEAD_DIM:  # noqa: SIM108
        k = tl.load(k_pointers)
    else:
        k = tl.load(k_pointers, mask=dims[:, None] < HEAD_DIM, other=0.0)
    scores = tl.dot(q, from_cache(k, q.dtype), input_precision="ieee") * scale
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (e^2x + 1), right at both infinities.
        tanh = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * _LOG2_E / soft_cap)) + 1.0)
        scores = tanh * (soft_cap * _LOG2_E)
    if MASKED:
        seen = inside[None, :] & (positions[None, :] <= query_positions[:, None])
        if WINDOW:
            seen = seen & (positions[None, :] > query_positions[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))

    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet: -inf - -inf would be NaN.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)

    # [KEYS, WIDTH]. A weight of 0 does not silence a NaN: values that nobody sees are not read.
    v_pointers = v_cache + slots[:, None] + dims[None, :]
    if MASKED:
        v = tl.load(v_pointers, mask=inside[:, None] & (dims[None, :] < HEAD_DIM), other=0.0)
    elif WIDTH == HEAD_DIM:
        v = tl.load(v_pointers)
    else:
        v = tl.load(v_pointers, mask=dims[None, :] < HEAD_DIM, other=0.0)
    out = tl.dot(weights.to(q.dtype), from_cache(v, q.dtype), out * shrink[:, None], input_precision="ieee")
    return out, new_top, total
