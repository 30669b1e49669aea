"""What a decoder is: sizes and options, resolved from a checkpoint's config.json once."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.executor.models.rope import RopeConfig
from pagoda.kernels.attention import AttentionParams
from pagoda.kernels.elementwise import Activation


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer."""

    rope: RopeConfig

    sliding_window: int | None = None
    """Tokens that a token sees, itself included; None: all before it."""


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer."""

    architecture: str
    """Its name in config.json, for example "LlamaForCausalLM"."""

    model_type: str

    dtype: str
    """Of the checkpoint's weights: "bfloat16", "float16" or "float32"."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    layers: tuple[LayerConfig, ...]

    max_position: int
    """Longest context the checkpoint is made for, in tokens."""

    norm_eps: float

    norm_plus_one: bool = False
    """Norm weights are stored as their difference from 1 (Gemma)."""

    sandwich_norms: bool = False
    """The outputs of attention and MLP are normed too, before they are added (Gemma 2)."""

    qk_norm: bool = False
    """Queries and keys are normed per head (Qwen3, Gemma 3)."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    activation: Activation = "silu"

    attention_scale: float = 1.0
    """Factor of q k^T."""

    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    """Bound of the logits: cap * tanh(logit / cap)."""

    embedding_scale: float = 1.0

    tied_embeddings: bool = False
    """The embedding is also the output head."""

    def attention(self, layer: int) -> AttentionParams:
        """What the attention of a layer computes."""
        return AttentionParams(self.attention_scale, self.layers[layer].sliding_window, self.attention_soft_cap)
