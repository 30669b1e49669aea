"""Norm, rotary embedding and activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, cat

from pagoda.kernels.elementwise import Activation, HeadNorm, Rope


class ReferenceElementwise:
    """See `Elementwise`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x.add_(delta), weight, eps)

    def norm_and_rotate(self, qkv: Tensor, num_kv_heads: int, rope: Rope, norm: HeadNorm | None) -> None:
        qk = qkv[:, :-num_kv_heads]
        if norm:
            queries, keys = qk[:, :-num_kv_heads], qk[:, -num_kv_heads:]
            queries.copy_(rms_norm(queries, norm.q_weight, norm.eps))
            keys.copy_(rms_norm(keys, norm.k_weight, norm.eps))
        qk.copy_(apply_rope(qk, *rope))

    def activate_and_multiply(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return silu_and_mul(gate_up) if activation == "silu" else gelu_tanh_and_mul(gate_up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (https://arxiv.org/abs/1910.07467).

    x: [..., dim]; weight: [dim], in x's dtype or in float32. With a float32 weight the product is rounded once, after
    the weight, which is how Gemma defines it; otherwise x / rms(x) is rounded first, as in Llama.

    Returns [..., dim] in x's dtype.
    """
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, eps=eps) * weight
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * half dimensions of every head (https://arxiv.org/abs/2104.09864).

    x: [num_tokens, num_heads, head_dim]
    cos, sin: [num_tokens, half] float32, half <= head_dim / 2. Dimension i pairs with i + half (the layout of Hugging
    Face checkpoints); dimensions from 2 * half on pass through.

    Computed in float32. Returns [num_tokens, num_heads, head_dim] in x's dtype.
    """
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return rotated if 2 * half == x.shape[-1] else cat((rotated, x[..., 2 * half :]), dim=-1)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (SwiGLU, https://arxiv.org/abs/2002.05202); gate_up: [..., 2 * width], gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh approximation of gelu; gate_up: [..., 2 * width], gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up
