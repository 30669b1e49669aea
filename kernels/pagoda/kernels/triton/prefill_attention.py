"""Paged attention of chunks of prompts, as a ragged batch: FlashAttention-2 (https://arxiv.org/abs/2307.08691).

A chunk is cut into tiles of consecutive tokens. One program computes one tile for one key/value head: the tokens' query
heads that read this head are all rows of its matrix, so that keys are read once for the whole group.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.triton.fp8 import cache_view
from pagoda.kernels.triton.softmax import LOG2_E, attend_keys
from pagoda.kernels.triton.tuning import MIN_ROWS, Tuning, head_width, tuning_for


def tokens_per_tile(tuning: Tuning, dtype: torch.dtype, head_dim: int, group: int) -> int:
    """Tokens of a tile, a power of two; group: query heads per key/value head."""
    rows = tuning.prefill_tile(head_dim, dtype.itemsize).rows
    return max(1, rows // int(triton.next_power_of_2(group)))


def lay_out_tiles(batch: AttentionBatch, num_tokens: int, tile_tokens: int) -> Tensor:
    """Tiles of the sequences that bring more than one token: [2, n] int32, sequence (-1: no tile) and first token.

    num_tokens: of the batch
    tile_tokens: tokens of a tile, counted from the first that its sequence brings

    With lengths on the host, the tiles that read most keys come first; without, there are some empty ones.
    """
    device = batch.seq_lens.device
    if batch.host is not None:
        tiles = _tiles_on_host(batch.host, tile_tokens)
        on_host = torch.from_numpy(tiles)
        # From pinned memory nobody waits for the copy.
        return (on_host.pin_memory() if device.type == "cuda" else on_host).to(device, non_blocking=True)
    num_new = batch.cu_seqlens_q.diff()
    ends = torch.where(num_new > 1, (num_new + tile_tokens - 1) // tile_tokens, 0).cumsum(0)
    # A bound that needs nothing from the device: every sequence has at most one tile that is not full.
    index = torch.arange(num_tokens // tile_tokens + len(num_new), device=device)
    sequence = torch.searchsorted(ends, index, right=True)
    there = sequence < len(ends)
    owner = sequence.clamp(max=len(ends) - 1)
    before = torch.where(owner > 0, ends[(owner - 1).clamp(min=0)], 0)
    first = (index - before) * tile_tokens
    return torch.stack((torch.where(there, sequence, -1), first)).int()


def _tiles_on_host(lengths: HostLengths, tile_tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    num_new = np.diff(lengths.cu_seqlens_q)
    counts = np.where(num_new > 1, -(-num_new // tile_tokens), 0)
    sequence = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    first = (np.arange(len(sequence)) - (ends - counts)[sequence]) * tile_tokens
    num_keys = (lengths.seq_lens - num_new)[sequence] + first
    order = np.argsort(-num_keys, kind="stable")
    return np.stack((sequence[order], first[order])).astype(np.int32)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    batch: AttentionBatch,
    params: AttentionParams,
    tiles: Tensor,
) -> None:
    """Writes the attention of all tokens in `tiles` (see `lay_out_tiles`) to their rows of `out`.

    Tensors as in `decode_attention`.
    """
    head_dim = q.shape[2]
    num_kv_heads = k_cache.shape[2]
    constants = prefill_constants(tuning_for(q.device), q.dtype, head_dim, q.shape[1], k_cache, params)
    scale = params.scale * params.k_scale
    _attend_tile[num_kv_heads, tiles.shape[1]](
        q,
        cache_view(k_cache),
        cache_view(v_cache),
        out,
        tiles,
        batch.cu_seqlens_q,
        batch.seq_lens,
        batch.block_tables,
        q.stride(0),
        out.stride(0),
        batch.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        scale if params.soft_cap else scale * LOG2_E,
        params.v_scale,
        params.soft_cap or 0.0,
        params.sliding_window or 0,
        **constants,
    )


def prefill_constants(
    tuning: Tuning, dtype: torch.dtype, head_dim: int, num_heads: int, k_cache: Tensor, params: AttentionParams
) -> dict[str, Any]:
    """What `_attend_tile` is compiled for."""
    _, block_size, num_kv_heads, _ = k_cache.shape
    tile = tuning.prefill_tile(head_dim, dtype.itemsize)
    group = num_heads // num_kv_heads
    tokens = tokens_per_tile(tuning, dtype, head_dim, group)
    padded_group = triton.next_power_of_2(group)
    return {
        "GROUP": group,
        "PADDED_GROUP": padded_group,
        "TOKENS": tokens,
        "ROWS": max(MIN_ROWS, tokens * padded_group),
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "KEYS": tile.keys,
        "WIDTH": head_width(head_dim),
        "SOFT_CAP": params.soft_cap is not None,
        "WINDOW": params.sliding_window is not None,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


# Compiled once, not for each kind of width of the block tables (see `_attend_split`).
@triton.jit(do_not_specialize=["table_stride"])
def _attend_tile(
    q,
    k_cache,
    v_cache,
    out_pointer,
    tiles,
    cu_seqlens_q,
    seq_lens,
    block_tables,
    q_stride,
    out_stride,
    table_stride,
    block_stride,
    slot_stride,
    head_stride,
    scale,
    v_scale,
    soft_cap,
    window,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """One tile of tokens and one key/value head."""
    kv_head, tile = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tiles + tile)
    if sequence < 0:
        return
    first = tl.load(tiles + tl.num_programs(1) + tile)
    first_token = tl.load(cu_seqlens_q + sequence)
    num_new = tl.load(cu_seqlens_q + sequence + 1) - first_token
    seq_len = tl.load(seq_lens + sequence)
    first_position = seq_len - num_new + first

    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    steps, members = rows // PADDED_GROUP, rows % PADDED_GROUP
    there = (members < GROUP) & (steps < TOKENS) & (first + steps < num_new)
    mask = there[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (first_token + first + steps).to(tl.int64)
    places = ((kv_head * GROUP + members) * HEAD_DIM)[:, None] + dims[None, :]
    queries = tl.load(q + (tokens * q_stride)[:, None] + places, mask=mask, other=0.0)
    positions = first_position + steps

    out = tl.zeros([ROWS, WIDTH], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    end = tl.minimum(seq_len, first_position + TOKENS)
    start = 0
    # [start, full_end): keys before all of the tile's tokens, in whole steps. Within a window none are sure to be seen.
    full_end = (first_position + 1) // KEYS * KEYS
    if WINDOW:
        start = tl.maximum(first_position - window + 1, 0)
        full_end = start // KEYS * KEYS
    table = block_tables + sequence.to(tl.int64) * table_stride
    if not WINDOW:
        for first_key in range(0, full_end, KEYS):
            out, top, total = attend_keys(
                queries,
                out,
                top,
                total,
                k_cache,
                v_cache,
                table,
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
                WINDOW,
                False,
            )
    for first_key in range(full_end, end, KEYS):
        out, top, total = attend_keys(
            queries,
            out,
            top,
            total,
            k_cache,
            v_cache,
            table,
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
            WINDOW,
            True,
        )

    # Rows of no token have seen nothing when the window left them nothing.
    out = out / tl.where(there, total, 1.0)[:, None] * v_scale
    out_places = out_pointer + (tokens * out_stride)[:, None] + places
    tl.store(out_places, out.to(out_pointer.dtype.element_ty), mask=mask)
