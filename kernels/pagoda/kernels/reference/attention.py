"""Paged attention over a ragged batch, in float32.

The batch is cut into tiles: at most `_MAX_TILE_QUERIES` consecutive tokens of a sequence, and the blocks they can see.
Tiles of the same shape are computed together. A tile's shape depends on its own sequence only, so no sequence is padded
because of its neighbours.

Bits: a token's result does not depend on the rest of the batch nor, without a sliding window, on how its sequence is
cut into chunks, as long as torch.matmul sums a row in the same order whatever the number of rows, columns and matrices.
Measured on x86 (MKL) it does, from `_MIN_ROWS` rows on and over at most `_MAX_SUMMED_KEYS` keys; `_matmul` and
`_weighted_sum` keep to that. With a window, keys start elsewhere in another chunk.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda.kernels.attention import SCALE_BYTES, AttentionBatch, AttentionParams

# Bounds the score matrix: heads * this * context length float32 numbers.
_MAX_TILE_QUERIES = 128

# For fewer rows there are other matrix kernels, which sum in another order; longer sums are cut by their length.
_MIN_ROWS = 4
_MAX_SUMMED_KEYS = 128

_MAX_INT8 = 127.0


@dataclass(frozen=True)
class _Tiles:
    """n tiles of t query tokens each, which see m cache blocks."""

    tokens: Tensor
    """[n, t] int64; indices of the queries in the batch."""

    blocks: Tensor
    """[n * m]; blocks of the keys, tile after tile. Blocks a tile does not have are 0 and masked."""

    visible: Tensor
    """[n, 1, 1, t, m * block_size] bool; whether the query sees the key."""

    dead: Tensor
    """int64; keys that no query of their tile sees, as indices in the n * m * block_size keys of all tiles."""


class ReferencePlan:
    """One step laid out in tiles, for each sliding window that its layers have."""

    def __init__(self, batch: AttentionBatch, block_size: int) -> None:
        self._batch = batch
        self._block_size = block_size
        self._tiles: dict[int | None, list[_Tiles]] = {}

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """See `AttentionPlan.store`."""
        store_kv(k, v, k_cache, v_cache, self._batch.slot_mapping)

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, params: AttentionParams) -> Tensor:
        """See `AttentionPlan.attend`."""
        window = params.sliding_window
        if window not in self._tiles:
            self._tiles[window] = _lay_out(self._batch, self._block_size, window)
        out = torch.empty_like(q)
        for tiles in self._tiles[window]:
            out[tiles.tokens] = _attend_tiles(q, k_cache, v_cache, tiles, params)
        return out


class ReferenceBackend:
    """Attention in plain torch."""

    name = "reference"

    def plan(self, batch: AttentionBatch, block_size: int) -> ReferencePlan:
        """See `AttentionBackend.plan`."""
        return ReferencePlan(batch, block_size)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, params: AttentionParams
) -> Tensor:
    """Attention of one layer and step; shapes as in `AttentionPlan.attend`. The truth for other backends' tests."""
    return ReferencePlan(batch, k_cache.shape[1]).attend(q, k_cache, v_cache, params)


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Scatter new K/V into the paged cache, in place.

    k, v: [num_tokens, num_kv_heads, head_dim]
    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_elements]
    slot_mapping: [num_tokens] int64; -1 = padding, skipped
    """
    stored = slot_mapping >= 0
    if not stored.all():
        k, v, slot_mapping = k[stored], v[stored], slot_mapping[stored]
    for x, cache in ((k, k_cache), (v, v_cache)):
        rows = quantize(x) if cache.dtype == torch.int8 else x
        cache.flatten(0, 1).index_copy_(0, slot_mapping, rows)


def quantize(x: Tensor) -> Tensor:
    """x [..., head_dim] as it is stored in int8, [..., head_dim + SCALE_BYTES]."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    # Below this the inverse would overflow.
    is_zero = largest < 1e-36
    most = torch.full_like(largest, _MAX_INT8)
    scale = torch.where(is_zero, 0.0, largest / most)
    inverse = torch.where(is_zero, 0.0, most / largest)
    # Products of float32 are exact in float64, so that they are rounded once.
    integers = (x.double() * inverse.double()).round().to(torch.int8)
    return torch.cat((integers, scale.view(torch.int8)), -1)


def dequantize(rows: Tensor) -> Tensor:
    """What was stored as `rows` [..., head_dim + SCALE_BYTES] int8, [..., head_dim] float32."""
    # A copy, because the scales of short heads need not lie where a float32 may.
    scale = rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return rows[..., :-SCALE_BYTES].float() * scale


def _lay_out(batch: AttentionBatch, block_size: int, window: int | None) -> list[_Tiles]:
    device = batch.seq_lens.device
    starts = batch.cu_seqlens_q.tolist()
    seq_lens = batch.seq_lens.tolist()
    # (queries, blocks) -> tiles as (sequence, first token in the batch, its position, first block)
    groups: defaultdict[tuple[int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
    for i, seq_len in enumerate(seq_lens):
        first_position = seq_len - (starts[i + 1] - starts[i])
        for token in range(starts[i], starts[i + 1], _MAX_TILE_QUERIES):
            num_queries = min(_MAX_TILE_QUERIES, starts[i + 1] - token)
            position = first_position + token - starts[i]
            first_key = 0 if window is None else max(0, position - window + 1)
            first_block = first_key // block_size
            num_blocks = (position + num_queries - 1) // block_size + 1 - first_block
            # Decoding rows of similar length share a shape; longer tiles are worth their own.
            width = _round_up(num_blocks) if num_queries == 1 else num_blocks
            groups[num_queries, width].append((i, token, position, first_block))

    layouts = []
    for (num_queries, width), members in groups.items():
        sequences, tokens, positions, first_blocks = torch.tensor(members, device=device).unbind(1)
        steps = torch.arange(num_queries, device=device)
        query_positions = positions[:, None] + steps  # [n, t]
        block_indices = first_blocks[:, None] + torch.arange(width, device=device)  # [n, m]
        owned = block_indices * block_size <= query_positions[:, -1:]
        blocks = batch.block_tables[sequences[:, None], torch.where(owned, block_indices, 0)]
        key_positions = (block_indices[:, :, None] * block_size + torch.arange(block_size, device=device)).flatten(1)
        visible = key_positions[:, None, :] <= query_positions[:, :, None]  # [n, t, m * block_size]
        if window is not None:
            visible &= key_positions[:, None, :] > query_positions[:, :, None] - window
        layouts.append(
            _Tiles(
                tokens=tokens[:, None] + steps,
                blocks=torch.where(owned, blocks, 0).flatten(),
                visible=visible[:, None, None],
                dead=(~visible.any(1)).flatten().nonzero().squeeze(1),
            )
        )
    return layouts


def _attend_tiles(q: Tensor, k_cache: Tensor, v_cache: Tensor, tiles: _Tiles, params: AttentionParams) -> Tensor:
    """Returns [n, t, num_heads, head_dim] in q's dtype.

    Shapes: n tiles, t queries, L = m * block_size keys, K key/value heads, G query heads per key/value head, D
    head_dim. Query heads of one key/value head are rows of one matrix, so that keys are read once for all of them.
    """
    n, t = tiles.tokens.shape
    num_heads, head_dim = q.shape[1:]
    kv_heads = k_cache.shape[2]
    queries = q[tiles.tokens].float().mul_(params.scale * params.k_scale)
    queries = queries.view(n, t, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, head_dim)
    keys = _gather(k_cache, tiles.blocks, n)
    # Masked weights are 0, but 0 * NaN is NaN: values that nobody sees are cleared.
    values = _gather(v_cache, tiles.blocks, n, cleared=tiles.dead)

    scores = _matmul(queries, keys.transpose(2, 3))  # [n, K, G * t, L]
    if params.soft_cap is not None:
        scores = torch.tanh(scores / params.soft_cap) * params.soft_cap
    scores = scores.view(n, kv_heads, -1, t, scores.shape[-1]).masked_fill_(~tiles.visible, float("-inf"))
    weights = scores.softmax(dim=-1).flatten(2, 3)
    out = _weighted_sum(weights, values)  # [n, K, G * t, D]
    out = out.view(n, kv_heads, -1, t, head_dim).permute(0, 3, 1, 2, 4)  # [n, t, K, G, D]
    return out.reshape(n, t, num_heads, head_dim).mul_(params.v_scale).to(q.dtype)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in which a row of `a` gives the same bits however many rows there are."""
    rows = a.shape[-2]
    if rows >= _MIN_ROWS:
        return a @ b
    return (F.pad(a, (0, 0, 0, _MIN_ROWS - rows)) @ b)[..., :rows, :]


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """weights [..., rows, L] @ values [..., L, head_dim], in which more keys of weight 0 do not change the bits."""
    out = _matmul(weights[..., :_MAX_SUMMED_KEYS], values[..., :_MAX_SUMMED_KEYS, :])
    for first in range(_MAX_SUMMED_KEYS, weights.shape[-1], _MAX_SUMMED_KEYS):
        keys = slice(first, first + _MAX_SUMMED_KEYS)
        out = out + _matmul(weights[..., keys], values[..., keys, :])
    return out


def _gather(cache: Tensor, blocks: Tensor, num_tiles: int, cleared: Tensor | None = None) -> Tensor:
    """The slots of `blocks` [n * m] as matrices, [n, num_kv_heads, L, head_dim] float32; those in `cleared` as 0."""
    slots = cache.flatten(1).index_select(0, blocks).view(-1, *cache.shape[2:])
    if cleared is not None:
        slots.index_fill_(0, cleared, 0.0)
    if cache.dtype == torch.int8:
        slots = dequantize(slots)
    heads = slots.view(num_tiles, -1, *slots.shape[1:]).transpose(1, 2)
    # One pass that converts and makes matrices contiguous: matmul is several times faster on those.
    return torch.empty(heads.shape, dtype=torch.float32, device=cache.device).copy_(heads)


def _round_up(blocks: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: few shapes, and less than half of one is padding."""
    power = 1 << (blocks - 1).bit_length()
    return power * 3 // 4 if power >= 4 and blocks <= power * 3 // 4 else power
