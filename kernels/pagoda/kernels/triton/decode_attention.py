"""Paged attention of one new token per sequence: flash-decoding (https://pytorch.org/blog/flash-decoding/).

A sequence's keys are split, so that few long sequences occupy the whole GPU too: one program per (sequence, key/value
head, split) computes softmax over its keys; a second kernel merges the splits. The query heads of a key/value head are
rows of one matrix (https://arxiv.org/abs/2305.13245), so that keys are read once for all of them.

Splits lie at multiples of a length that follows from the sequence's own length, so where `split_len` is fixed, a row's
bits depend on the row alone.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams
from pagoda.kernels.triton.fp8 import cache_view
from pagoda.kernels.triton.softmax import LOG2_E, attend_keys
from pagoda.kernels.triton.tuning import MIN_ROWS, Tuning, head_width, num_processors, tuning_for

# Shorter splits cost more to merge than they gain.
_MIN_SPLIT = 128
# Programs per processor that hide each other's latency, a few waves of them.
_PROGRAMS_PER_PROCESSOR = 6
# Splits that the merging kernel takes at a time.
_MERGED = 16
# Most splits of a sequence whose length may not follow from the batch. In a graph the grid has so many for each row,
# however short it is: a program with nothing to do costs a few nanoseconds, a partial sum half a kilobyte.
_MOST_FIXED_SPLITS = 32


@dataclass(frozen=True)
class Splits:
    """How a step's keys are split."""

    split_len: int
    """Keys of a split; a multiple of every tile's number of keys."""

    most_splits: int
    """A sequence that would have more has splits of a multiple of that length."""

    num_splits: int
    """Splits of the longest sequence, or a bound of them."""


def choose_splits(
    max_seq_len: int, total_keys: int, num_kv_heads: int, device: torch.device, split_len: int | None
) -> Splits:
    """Splits that occupy the device; with `split_len`, they are the same whatever the batch.

    max_seq_len, total_keys: longest sequence and sum of all, or bounds of them
    """
    if split_len is not None:
        return Splits(split_len, _MOST_FIXED_SPLITS, min(_MOST_FIXED_SPLITS, triton.cdiv(max_seq_len, split_len)))
    programs = num_processors(device) * _PROGRAMS_PER_PROCESSOR
    even = triton.cdiv(total_keys * num_kv_heads, programs)
    split_len = _MIN_SPLIT * max(1, triton.cdiv(even, _MIN_SPLIT))
    num_splits = triton.cdiv(max_seq_len, split_len)
    return Splits(split_len, num_splits, num_splits)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    batch: AttentionBatch,
    params: AttentionParams,
    splits: Splits,
) -> None:
    """Writes the attention of the sequences that bring one token to their rows of `out`; the others are passed over.

    q, out: [num_tokens, num_heads, head_dim]; heads of a token side by side
    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], same strides; in a floating-point dtype,
    float8_e4m3fn included
    """
    num_seqs, (_, num_heads, head_dim) = len(batch.seq_lens), q.shape
    num_kv_heads = k_cache.shape[2]
    tuning = tuning_for(q.device)
    constants = split_constants(tuning, q.dtype, head_dim, num_heads, k_cache, params)
    single = splits.num_splits == 1
    # One split is the result already: it is not merged.
    shape = (num_seqs, num_heads, splits.num_splits)
    partial = out if single else q.new_empty((*shape, head_dim), dtype=torch.float32)
    log_sums = q.new_empty(shape, dtype=torch.float32)
    scale = params.scale * params.k_scale
    _attend_split[num_kv_heads, num_seqs, splits.num_splits](
        q,
        cache_view(k_cache),
        cache_view(v_cache),
        partial,
        log_sums,
        batch.cu_seqlens_q,
        batch.seq_lens,
        batch.block_tables,
        q.stride(0),
        out.stride(0),
        batch.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        splits.split_len,
        splits.most_splits,
        splits.num_splits,
        scale if params.soft_cap else scale * LOG2_E,
        params.v_scale,
        params.soft_cap or 0.0,
        params.sliding_window or 0,
        SINGLE=single,
        **constants,
    )
    if not single:
        _merge_splits[num_heads, num_seqs](
            partial,
            log_sums,
            out,
            batch.cu_seqlens_q,
            batch.seq_lens,
            out.stride(0),
            splits.split_len,
            splits.most_splits,
            splits.num_splits,
            params.sliding_window or 0,
            WINDOW=params.sliding_window is not None,
            HEAD_DIM=head_dim,
            WIDTH=head_width(head_dim),
            SPLITS=_MERGED,
            num_warps=4,
        )


def split_constants(
    tuning: Tuning, dtype: torch.dtype, head_dim: int, num_heads: int, k_cache: Tensor, params: AttentionParams
) -> dict[str, Any]:
    """What `_attend_split` is compiled for, but for SINGLE."""
    _, block_size, num_kv_heads, _ = k_cache.shape
    tile = tuning.decode_tile(head_dim, dtype.itemsize)
    group = num_heads // num_kv_heads
    return {
        "GROUP": group,
        "ROWS": max(MIN_ROWS, triton.next_power_of_2(group)),
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "KEYS": tile.keys,
        "WIDTH": head_width(head_dim),
        "SOFT_CAP": params.soft_cap is not None,
        "WINDOW": params.sliding_window is not None,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


# What changes from step to step: to compile a kernel for 1 and for multiples of 16 would stop a server for seconds.
@triton.jit(do_not_specialize=["split_len", "most_splits", "num_splits", "table_stride"])
def _attend_split(
    q,
    k_cache,
    v_cache,
    partial,
    log_sums,
    cu_seqlens_q,
    seq_lens,
    block_tables,
    q_stride,
    out_stride,
    table_stride,
    block_stride,
    slot_stride,
    head_stride,
    split_len,
    most_splits,
    num_splits,
    scale,
    v_scale,
    soft_cap,
    window,
    SINGLE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """One split of one sequence and key/value head.

    partial: [num_seqs, num_heads, num_splits, head_dim] float32; if SINGLE, `out` of `decode_attention`
    log_sums: [num_seqs, num_heads, num_splits] float32; log2 of the sum of exponentials
    """
    kv_head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(cu_seqlens_q + sequence)
    if tl.load(cu_seqlens_q + sequence + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + sequence)
    split_len = _row_split_len(seq_len, split_len, most_splits)
    start, end = split * split_len, tl.minimum((split + 1) * split_len, seq_len)
    if WINDOW:
        start = tl.maximum(start, seq_len - window)
    if start >= end:
        return

    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    heads = kv_head * GROUP + rows
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    places = heads[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(q + token.to(tl.int64) * q_stride + places, mask=mask, other=0.0)
    positions = tl.full([ROWS], 0, tl.int32) + (seq_len - 1)

    out = tl.zeros([ROWS, WIDTH], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # From a multiple of KEYS on, whatever the window: the same keys are summed together in every batch.
    for first_key in range(start // KEYS * KEYS, end, KEYS):
        out, top, total = attend_keys(
            queries,
            out,
            top,
            total,
            k_cache,
            v_cache,
            block_tables + sequence.to(tl.int64) * table_stride,
            first_key,
            start,
            end,
            positions,
            kv_head,
            block_stride,
            slot_stride,
            head_stride,
            scale,
            soft_cap,
            window,
            BLOCK_SIZE,
            HEAD_DIM,
            KEYS,
            WIDTH,
            SOFT_CAP,
            False,  # the window is in `start` already
            True,
        )

    out = out / total[:, None] * v_scale
    if SINGLE:
        tl.store(partial + token.to(tl.int64) * out_stride + places, out.to(partial.dtype.element_ty), mask=mask)
    else:
        # kv_head is the fastest axis of the grid: its size times GROUP is the number of heads.
        row = (sequence.to(tl.int64) * tl.num_programs(0) * GROUP + heads) * num_splits + split
        tl.store(partial + row[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)
        tl.store(log_sums + row, top + tl.log2(total), mask=rows < GROUP)


@triton.jit(do_not_specialize=["split_len", "most_splits", "num_splits"])
def _merge_splits(
    partial,
    log_sums,
    out,
    cu_seqlens_q,
    seq_lens,
    out_stride,
    split_len,
    most_splits,
    num_splits,
    window,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The mean of a head's splits, weighted by their sums of exponentials; SPLITS of them at a time."""
    head, sequence = tl.program_id(0), tl.program_id(1)
    token = tl.load(cu_seqlens_q + sequence)
    if tl.load(cu_seqlens_q + sequence + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + sequence)
    split_len = _row_split_len(seq_len, split_len, most_splits)
    first = 0
    if WINDOW:
        first = tl.maximum(seq_len - window, 0) // split_len
    end = tl.cdiv(seq_len, split_len)

    dims = tl.arange(0, WIDTH)
    row = (sequence.to(tl.int64) * tl.num_programs(0) + head) * num_splits
    merged = tl.zeros([WIDTH], tl.float32)
    top, total = float("-inf"), 0.0
    for start in range(first // SPLITS * SPLITS, end, SPLITS):
        splits = start + tl.arange(0, SPLITS)
        there = (splits >= first) & (splits < end)
        sums = tl.load(log_sums + row + splits, mask=there, other=float("-inf"))
        mask = there[:, None] & (dims < HEAD_DIM)[None, :]
        parts = tl.load(partial + (row + splits)[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(sums, 0))
        weights = tl.exp2(sums - new_top)
        shrink = tl.exp2(top - new_top)
        merged = merged * shrink + tl.sum(weights[:, None] * parts, 0)
        total = total * shrink + tl.sum(weights, 0)
        top = new_top
    merged = (merged / total).to(out.dtype.element_ty)
    tl.store(out + token.to(tl.int64) * out_stride + head * HEAD_DIM + dims, merged, mask=dims < HEAD_DIM)


@triton.jit
def _row_split_len(seq_len, split_len, most_splits):
    """A multiple of split_len, so long that a sequence has at most `most_splits` splits."""
    return split_len * tl.cdiv(seq_len, split_len * most_splits)
