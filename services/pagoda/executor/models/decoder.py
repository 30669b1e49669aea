"""The generic decoder: every supported family is this, with its options.

Shape legend: T tokens of the step (all its sequences, one after the other), C hidden_size, H query heads, K key/value
heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.linear import DenseLinear, Linear, ShortlistingHead
from pagoda.executor.models.ranks import ONE_RANK, Ranks
from pagoda.executor.models.rope import rope_table
from pagoda.kernels.attention import AttentionPlan
from pagoda.kernels.elementwise import Elementwise, HeadNorm, Rope
from pagoda.kernels.reference.elementwise import ReferenceElementwise
from pagoda.kernels.sampling import SamplingTensors, Shortlist

KvLayer = tuple[Tensor, Tensor]
"""A layer's k_cache and v_cache, each [num_blocks, block_size, K, head_elements]."""


class Layers(Protocol):
    """All layers over one cache, computed at once."""

    def run(
        self, x: Tensor, normed: Tensor, ropes: Sequence[Rope], plan: AttentionPlan, tokens: Tensor | None = None
    ) -> Tensor:
        """x: [T, C] the residual stream, whose norm is `normed`; both are overwritten
        tokens: see `Decoder.forward`

        Returns the final norm, [n, C].
        """
        ...


@dataclass(frozen=True)
class LayerWeights:
    """Norm weights are [C], those of q and k [D]; None where the family has none."""

    qkv: Linear
    """[C] -> [(H + 2 K) D]: queries, keys, values."""

    o: Linear
    gate_up: Linear
    """[C] -> [intermediate_size]: `Elementwise.activate_and_multiply` of gate and up."""

    down: Linear
    attention_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None

    def head_norm(self, eps: float) -> HeadNorm | None:
        """Of queries and keys; None where the family has none."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorm(self.q_norm, self.k_norm, eps)

    @property
    def num_bytes(self) -> int:
        """Memory of all of it."""
        norms = (
            self.attention_norm,
            self.mlp_norm,
            self.q_norm,
            self.k_norm,
            self.attention_out_norm,
            self.mlp_out_norm,
        )
        linears = (self.qkv, self.o, self.gate_up, self.down)
        return sum(norm.nbytes for norm in norms if norm is not None) + sum(linear.num_bytes for linear in linears)


@dataclass(frozen=True)
class DecoderWeights:
    """Everything that was learned."""

    embedding: Tensor
    """[vocab_size, C]."""

    layers: Sequence[LayerWeights]
    norm: Tensor
    head: Linear
    """[C] -> [vocab_size]. Made of the embedding where the two are tied."""

    @property
    def next_norms(self) -> list[Tensor]:
        """The norm behind each layer: the next one's first, then that of all."""
        return [*(layer.attention_norm for layer in self.layers[1:]), self.norm]

    @property
    def num_bytes(self) -> int:
        """Memory of all of it."""
        # Unpacked, a tied head is the embedding itself.
        is_shared = isinstance(self.head, DenseLinear) and self.head.weight is self.embedding
        ends = self.embedding.nbytes + self.norm.nbytes + (0 if is_shared else self.head.num_bytes)
        return ends + sum(layer.num_bytes for layer in self.layers)


MakeLayers = Callable[[ModelConfig, DecoderWeights, Sequence[int], Sequence[KvLayer]], Layers]
"""(config, weights, which of a step's ropes each layer takes, cache) -> the layers."""


class Decoder:
    """A decoder-only transformer over a paged KV cache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        max_model_len: int,
        elementwise: Elementwise | None = None,
        make_layers: MakeLayers | None = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        """config, weights: this rank's share (see `ranks.share_of`)
        max_model_len: longest sequence, in tokens; rotary tables are made for it
        elementwise: computes what lies between matrix products; plain torch when None
        make_layers: computes all layers at once, on one rank; they run one operation after the other when None
        """
        assert make_layers is None or ranks.size == 1
        self.config = config
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._ranks = ranks
        self._elementwise = elementwise or ReferenceElementwise()
        ropes = list(dict.fromkeys(layer.rope for layer in config.layers))
        self._rope_indices = [ropes.index(layer.rope) for layer in config.layers]
        self._make_layers = make_layers
        self._made_layers: tuple[Sequence[KvLayer], Layers] | None = None
        self._tables = [tuple(table.to(self.device) for table in rope_table(rope, max_model_len)) for rope in ropes]
        self._layers = [
            _Layer(config, i, layer_weights, self._rope_indices[i], self._elementwise, ranks)
            for i, layer_weights in enumerate(weights.layers)
        ]
        # Rounded to the model's dtype first, as the checkpoints were trained.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=self.dtype).item()

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Sequence[KvLayer],
        plan: AttentionPlan,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Compute the step's tokens and store their keys and values.

        token_ids, positions: [T] int32 or int64
        kv: the cache, layer by layer
        plan: the step's attention
        tokens: [n] int64, strictly ascending; the tokens of the step whose hidden states are wanted, all when None. Of
        the others, nothing is computed behind the last layer's keys, values and attention.

        Returns the final hidden states [n, C], normed.
        """
        if tokens is not None and len(tokens) == len(token_ids):
            tokens = None
        x = self._embed(token_ids)
        if self._embedding_scale != 1.0:
            x = x * self._embedding_scale
        ropes = [Rope(cos[positions], sin[positions]) for cos, sin in self._tables]
        eps, first = self.config.norm_eps, self.weights.layers[0]
        normed = self._elementwise.rms_norm(x, first.attention_norm, eps)
        if self._make_layers:
            return self._layers_over(kv).run(x, normed, ropes, plan, tokens)
        # What a layer adds is added together with the next norm.
        for layer, layer_kv, next_norm in zip(self._layers, kv, self.weights.next_norms, strict=True):
            attended = layer.attend(normed, ropes, layer_kv, plan)
            if layer is self._layers[-1] and tokens is not None:
                x, attended = x[tokens], attended[tokens]
            delta = layer.project(x, attended)
            normed = self._elementwise.add_rms_norm(x, delta, next_norm, eps)
        return normed

    def _embed(self, token_ids: Tensor) -> Tensor:
        if self._ranks.size == 1:
            return F.embedding(token_ids, self.weights.embedding)
        # Tokens of other ranks are zeros here, and the sum has them.
        size = len(self.weights.embedding)
        mine = token_ids - self._ranks.rank * size
        is_mine = (mine >= 0) & (mine < size)
        x = F.embedding(mine.clamp(0, size - 1), self.weights.embedding)
        return self._ranks.all_reduce(x * is_mine[:, None])

    def _layers_over(self, kv: Sequence[KvLayer]) -> Layers:
        if self._made_layers is None or self._made_layers[0] is not kv:
            assert self._make_layers
            self._made_layers = kv, self._make_layers(self.config, self.weights, self._rope_indices, kv)
        return self._made_layers[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [n, C] rows of `forward`'s result; returns [n, vocab_size] float32."""
        logits = self._ranks.all_gather(self.weights.head(hidden).float())
        cap = self.config.logit_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def shortlist(self, hidden: Tensor, rows: SamplingTensors) -> Shortlist | None:
        """The tokens that can be drawn, with their `logits`, if hidden [n, C] is sampled as `rows` say. None where the
        head computes all logits as soon."""
        head = self.weights.head
        # A cap makes different logits equal, and a shortlist knows of those before it.
        if self.config.logit_soft_cap is None and self._ranks.size == 1 and isinstance(head, ShortlistingHead):
            return head.shortlist(hidden, rows)
        return None


class _Layer:
    """Attention and MLP, each normed before (and, in Gemma 2 and 3, after) and added to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        weights: LayerWeights,
        rope_index: int,
        elementwise: Elementwise,
        ranks: Ranks,
    ) -> None:
        self._weights = weights
        self._ranks = ranks
        self._rope_index = rope_index
        self._eps = config.norm_eps
        self._head_dim = config.head_dim
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._elementwise = elementwise
        self._attention = config.attention(index)
        self._head_norm = weights.head_norm(config.norm_eps)

    def attend(self, normed: Tensor, ropes: Sequence[Rope], kv: KvLayer, plan: AttentionPlan) -> Tensor:
        """normed: [T, C] the norm of the residual stream. Returns what the heads read, [T, H D]."""
        qkv = self._weights.qkv(normed).view(len(normed), -1, self._head_dim)  # [T, H + 2 K, D]
        self._elementwise.norm_and_rotate(qkv, self._num_kv_heads, ropes[self._rope_index], self._head_norm)
        q, k, v = torch.split(qkv, [self._num_heads, self._num_kv_heads, self._num_kv_heads], dim=1)
        plan.store(k, v, *kv)
        return plan.attend(q, *kv, self._attention).flatten(1)

    def project(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [T, C] the residual stream, to which attention is added in place; attended: what the heads read, [T, H D].

        Returns what is still to be added, [T, C].
        """
        weights, elementwise = self._weights, self._elementwise
        delta = self._ranks.all_reduce(weights.o(attended))
        if weights.attention_out_norm is not None:
            delta = elementwise.rms_norm(delta, weights.attention_out_norm, self._eps)
        normed = elementwise.add_rms_norm(x, delta, weights.mlp_norm, self._eps)
        delta = self._ranks.all_reduce(weights.down(weights.gate_up(normed)))
        if weights.mlp_out_norm is not None:
            delta = elementwise.rms_norm(delta, weights.mlp_out_norm, self._eps)
        return delta
