"""The one interface that every attention backend implements.

A step mixes chunks of prompts with single decoding tokens; to attention they are all the same: sequences of a
ragged batch that bring a few new tokens and see what the paged cache holds. A backend plans a step once, and
every layer runs on that plan.

    plan = backend.plan(batch)
    for layer in layers:
        plan.store(k, v, k_cache, v_cache)
        out = plan.attend(q, k_cache, v_cache, layer.attention)

A cache is in the model's dtype; where the backend can, in float8 with one scale for all of it (`AttentionParams`), or
in int8 with a scale for each head of a slot, symmetric around 0: what is stored is the nearest integer to
127 x / max |x|. Then a head of a slot takes `head_elements` bytes, its numbers and behind them the scale max |x| / 127
in float32, so that a block has all that is needed to read it. A token's keys and values are read from the cache only,
also by tokens of the same step: what they are rounded to does not depend on how a prompt is cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCALE_BYTES = 4
"""Of the scale of a head in a cache in int8."""


def head_elements(head_dim: int, cache_dtype: torch.dtype) -> int:
    """What a head takes in a slot of the cache, in elements of it."""
    return head_dim + SCALE_BYTES if cache_dtype == torch.int8 else head_dim


@dataclass(frozen=True)
class HostLengths:
    """Lengths of a step's sequences in host memory, so that a plan need not wait for a device to read them."""

    cu_seqlens_q: NDArray[np.int32]
    """[num_seqs + 1]."""

    seq_lens: NDArray[np.int32]
    """[num_seqs]."""


@dataclass(frozen=True)
class AttentionBatch:
    """What one step computes. Every tensor is int32 on the model's device, unless said otherwise.

    Sequence i brings tokens [cu_seqlens_q[i], cu_seqlens_q[i + 1]) of the batch, which are the last ones of its
    seq_lens[i] tokens. Its token at position p is in slot p % block_size of block block_tables[i, p // block_size].
    """

    cu_seqlens_q: Tensor
    """[num_seqs + 1]; starts with 0, ends with num_tokens, strictly increasing."""

    seq_lens: Tensor
    """[num_seqs]; tokens in the cache once this step's are stored."""

    block_tables: Tensor
    """[num_seqs, max_blocks]; entries past a sequence's last block may hold anything."""

    slot_mapping: Tensor
    """[num_tokens] int64; block id * block_size + slot of each token of the batch, -1 = do not store."""

    host: HostLengths | None = None
    """The same lengths on the host, if it has them. For a backend to plan better with, never a must."""


@dataclass(frozen=True)
class AttentionParams:
    """What a layer's attention computes: softmax(mask(soft_cap * tanh(scale * q k^T / soft_cap))) v."""

    scale: float

    sliding_window: int | None = None
    """A token sees itself and the sliding_window - 1 tokens before it; None: everything before it."""

    soft_cap: float | None = None
    """Bound of the scores, as in Gemma 2 (https://arxiv.org/abs/2408.00118); None: no bound."""

    k_scale: float = 1.0
    """Of a cache in float8: a key is k_scale times what is stored."""

    v_scale: float = 1.0
    """Likewise for values."""


class AttentionPlan(Protocol):
    """One step's work, laid out by a backend; used by every layer."""

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """Scatter the step's keys and values into the paged cache, in place.

        k, v: [num_tokens, num_kv_heads, head_dim]
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_elements]; a backend may order a block's bytes in
        its own way
        """
        ...

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, params: AttentionParams) -> Tensor:
        """Causal attention of the step's tokens over their sequences in the cache.

        q: [num_tokens, num_heads, head_dim]; num_heads is a multiple of num_kv_heads, and query head h reads
        key/value head h // (num_heads // num_kv_heads)
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_elements]; slots outside the sequences may hold
        anything, NaN included

        Returns [num_tokens, num_heads, head_dim] in q's dtype.
        """
        ...


class AttentionBackend(Protocol):
    """A way to compute paged attention."""

    name: str

    def plan(self, batch: AttentionBatch, block_size: int) -> AttentionPlan:
        """Lays out one step; the cost is paid once, not per layer."""
        ...
