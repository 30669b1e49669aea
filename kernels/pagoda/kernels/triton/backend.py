"""The attention backend of GPUs: decoding rows and chunks of prompts each through their kernel."""

from __future__ import annotations

from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams
from pagoda.kernels.triton.decode_attention import Splits, choose_splits, decode_attention
from pagoda.kernels.triton.prefill_attention import lay_out_tiles, prefill_attention, tokens_per_tile
from pagoda.kernels.triton.rope import rope_and_store
from pagoda.kernels.triton.store_kv import store_kv
from pagoda.kernels.triton.tuning import tuning_for

DETERMINISTIC_SPLIT = 256
"""Keys of a split where its length may not depend on the batch; more in a long sequence."""


class TritonPlan:
    """One step, laid out when the first layer tells its heads; nothing here waits for the device."""

    def __init__(self, batch: AttentionBatch, block_size: int, split_len: int | None) -> None:
        """split_len: keys of a decoding row's splits; None: what occupies the device."""
        self._batch = batch
        self._split_len = split_len
        self._num_seqs = len(batch.seq_lens)
        self._num_tokens = len(batch.slot_mapping)
        if batch.host is not None:
            num_new = batch.host.cu_seqlens_q[1:] - batch.host.cu_seqlens_q[:-1]
            decoding = batch.host.seq_lens[num_new == 1]
            self._decodes, self._prefills = len(decoding) > 0, len(decoding) < self._num_seqs
            self._max_seq_len, self._total_keys = int(decoding.max(initial=0)), int(decoding.sum())
        else:
            # Shapes tell when all rows decode. If not, both kernels look at every sequence and pass over the others'.
            self._decodes, self._prefills = True, self._num_tokens > self._num_seqs
            self._max_seq_len = batch.block_tables.shape[1] * block_size
            self._total_keys = self._max_seq_len * self._num_seqs
        self._splits: dict[int, Splits] = {}
        self._tiles: dict[int, Tensor] = {}

    def store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: float = 1.0, v_scale: float = 1.0
    ) -> None:
        """See `AttentionPlan.store`; scales: of a cache in float8, as in `AttentionParams`."""
        store_kv(k, v, k_cache, v_cache, self._batch.slot_mapping, k_scale=k_scale, v_scale=v_scale)

    def rope_and_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        params: AttentionParams,
        *,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """Norms, rotates and stores in one pass, instead of `store`; see `rope.rope_and_store`.

        Returns the queries [num_tokens, num_heads, head_dim], a view of qkv.
        """
        rope_and_store(
            qkv,
            cos,
            sin,
            k_cache,
            v_cache,
            self._batch.slot_mapping,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            k_scale=params.k_scale,
            v_scale=params.v_scale,
        )
        return qkv[:, : qkv.shape[1] - 2 * k_cache.shape[2]]

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, params: AttentionParams) -> Tensor:
        """See `AttentionPlan.attend`; heads of a token lie side by side."""
        out = q.new_empty(q.shape)
        _, num_heads, head_dim = q.shape
        num_kv_heads = k_cache.shape[2]
        if self._decodes:
            splits = self._splits.get(num_kv_heads)
            if splits is None:
                splits = choose_splits(self._max_seq_len, self._total_keys, num_kv_heads, q.device, self._split_len)
                self._splits[num_kv_heads] = splits
            decode_attention(q, k_cache, v_cache, out, self._batch, params, splits)
        if self._prefills:
            tile_tokens = tokens_per_tile(tuning_for(q.device), q.dtype, head_dim, num_heads // num_kv_heads)
            tiles = self._tiles.get(tile_tokens)
            if tiles is None:
                tiles = lay_out_tiles(self._batch, self._num_tokens, tile_tokens)
                self._tiles[tile_tokens] = tiles
            prefill_attention(q, k_cache, v_cache, out, self._batch, params, tiles)
        return out


class TritonBackend:
    """Attention in Triton."""

    name = "triton"

    def __init__(self, *, deterministic: bool = False, split_len: int | None = None) -> None:
        """deterministic: a decoding row's bits do not depend on the rest of the batch, at the cost of some speed in
        small batches

        split_len: fixes the splits' length, a multiple of 128, where DETERMINISTIC_SPLIT does not suit
        """
        if split_len is None and deterministic:
            split_len = DETERMINISTIC_SPLIT
        self._split_len = split_len

    def plan(self, batch: AttentionBatch, block_size: int) -> TritonPlan:
        """See `AttentionBackend.plan`. Uses `batch.host` where it is given; copies nothing to the host."""
        return TritonPlan(batch, block_size, self._split_len)
