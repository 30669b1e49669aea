"""The interface of the small operations between a decoder's matrix products.

Shape legend: T tokens of the step, C hidden_size, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]


class Rope(NamedTuple):
    """Rotary embedding (https://arxiv.org/abs/2104.09864) of a step's tokens: [T, half] float32, half <= D / 2.

    Dimension i of a head pairs with i + half (the layout of Hugging Face checkpoints); dimensions from 2 * half on pass
    through.
    """

    cos: Tensor
    sin: Tensor


class HeadNorm(NamedTuple):
    """RMS norm of every query and key head: weights [D]."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


class Elementwise(Protocol):
    """Everything is computed in float32 and rounded where the checkpoints' own code rounds.

    A norm's weight has the model's dtype, and is multiplied after x / rms(x) was rounded (Llama), or it is float32, and
    the product is rounded once (Gemma).
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension (https://arxiv.org/abs/1910.07467); x: [T, C]."""
        ...

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Adds delta to x in place; returns the norm of the sum. x, delta: [T, C]."""
        ...

    def norm_and_rotate(self, qkv: Tensor, num_kv_heads: int, rope: Rope, norm: HeadNorm | None) -> None:
        """Norms, unless `norm` is None, and rotates the query and key heads in place; qkv: [T, H + 2 K, D]."""
        ...

    def activate_and_multiply(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up (https://arxiv.org/abs/2002.05202); gate_up: [T, 2 * width], gate first."""
        ...
