"""Linear layers behind one small interface, so that packed and quantized ones can take their place."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from pagoda.kernels.elementwise import Activation, Elementwise
from pagoda.kernels.sampling import SamplingTensors, Shortlist


class Linear(Protocol):
    """x W^T + b, however W is stored."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features] in x's dtype."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory of weight and bias."""
        ...


@runtime_checkable
class ShortlistingHead(Linear, Protocol):
    """From hidden states to logits; can leave out those that do not matter."""

    def shortlist(self, x: Tensor, rows: SamplingTensors) -> Shortlist | None:
        """x: [n, in_features]; rows: how each is going to be sampled. None: any token may be drawn, or too many."""
        ...


class DenseLinear:
    """W as one tensor in the model's dtype.

    torch chooses a matrix kernel by the number of rows. Measured on x86 with AVX-512: in bfloat16 a row's result has
    the same bits whatever the number of rows; in float32 it differs in its last bits for fewer than four rows, and for
    a few other small numbers with several threads.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: [out_features, in_features]; bias: [out_features]."""
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class ActivatedLinear:
    """A linear layer to [2 * out_features], gate first, and the activation behind it, one after the other."""

    def __init__(self, linear: Linear, elementwise: Elementwise, activation: Activation) -> None:
        self._linear = linear
        self._elementwise = elementwise
        self._activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        return self._elementwise.activate_and_multiply(self._linear(x), self._activation)

    @property
    def num_bytes(self) -> int:
        return self._linear.num_bytes
