"""A plain Llama for training: the same function as Hugging Face's LlamaForCausalLM, written out.

Shape legend: B rows, T tokens, C width, H query heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_STD = 0.3


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; the defaults are the bundled chat model."""

    vocab_size: int
    width: int = 128
    num_layers: int = 4
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    mlp_width: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048


def chat_config(vocab_size: int) -> ModelConfig:
    """The bundled chat model."""
    return ModelConfig(vocab_size)


def draft_config(vocab_size: int) -> ModelConfig:
    """Its draft model: at most a quarter of the parameters."""
    return ModelConfig(vocab_size, width=64, num_layers=2, mlp_width=160)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, T, C]; cos, sin: [T, D]."""
        rows, length, _ = x.shape
        shape = (rows, length, -1, self.config.head_dim)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)  # [B, H, T, D]
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)  # [B, K, T, D]
        v = self.v_proj(x).view(shape).transpose(1, 2)
        # Repeating the KV heads is faster on a CPU than SDPA's own grouped-query path.
        group = self.config.num_heads // self.config.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Parameter names are Hugging Face's without the leading `model.`; the head is the embedding (tied)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.rotary = rotary_tables(config)  # constants, not weights
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights; zero output projections, so that every block starts as the identity.

        The embedding starts larger than a usual 0.02, since Muon's updates soon make the blocks' outputs of order one
        beside it; the last norm makes up for that in the logits.
        """
        nn.init.normal_(self.embed_tokens.weight, std=EMBEDDING_STD)
        nn.init.constant_(self.norm.weight, 1 / (EMBEDDING_STD * self.config.width**0.5))
        for name, weight in self.layers.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits. ids: [B, T] int64; positions: [B, T] bool, where logits are wanted (None = everywhere).

        Returns [num positions, V], rows in order.
        """
        length = ids.shape[1]
        x = self.embed_tokens(ids)
        cos, sin = (table[:length] for table in self.rotary)
        for block in self.layers:
            x = block(x, cos, sin)
        x = x.flatten(0, 1) if positions is None else x[positions]
        return F.linear(self.norm(x), self.embed_tokens.weight)


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [max_positions, D], the two halves alike (Hugging Face's layout)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    inverse_frequencies = config.rope_theta ** (-half / config.head_dim)
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), inverse_frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021). x: [B, heads, T, D]; computed in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
