"""The small operations between a decoder's matrix products, on a GPU."""

from __future__ import annotations

from torch import Tensor

from pagoda.kernels.elementwise import Activation, HeadNorm, Rope
from pagoda.kernels.triton.activation import gelu_tanh_and_mul, silu_and_mul
from pagoda.kernels.triton.norm import add_rms_norm, rms_norm
from pagoda.kernels.triton.rope import norm_and_rotate


class TritonElementwise:
    """See `Elementwise`; tensors are contiguous, but for the tokens of qkv, which may lie apart."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_rms_norm(x, delta, weight, eps)

    def norm_and_rotate(self, qkv: Tensor, num_kv_heads: int, rope: Rope, norm: HeadNorm | None) -> None:
        if norm is None:
            norm_and_rotate(qkv, num_kv_heads, rope.cos, rope.sin)
        else:
            norm_and_rotate(
                qkv, num_kv_heads, rope.cos, rope.sin, q_norm=norm.q_weight, k_norm=norm.k_weight, eps=norm.eps
            )

    def activate_and_multiply(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return silu_and_mul(gate_up) if activation == "silu" else gelu_tanh_and_mul(gate_up)
