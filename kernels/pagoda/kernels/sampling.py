"""The interface of a sampler that runs where the logits are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class SamplingTensors:
    """Sampling parameters of m rows on the device, each [m]; their meaning: `step.proto`, RowSampling."""

    temperature: Tensor
    """float32; 0: the most likely token."""

    top_p: Tensor
    """float32; 1: off."""

    top_k: Tensor
    """int32; 0: off."""

    min_p: Tensor
    """float32; 0: off."""

    seed: Tensor
    """int64; the bits of an unsigned number."""

    position: Tensor
    """int64; index of the token to sample in its sequence."""


class Shortlist(NamedTuple):
    """The tokens that m rows can draw, and perhaps others; -inf and 0 where a row has fewer than another one."""

    logits: Tensor
    """[m, w] float32."""

    token_ids: Tensor
    """[m, w] int64; ascending in a row."""


class SampleTokens(Protocol):
    """Draws a token per row."""

    def __call__(self, logits: Tensor, rows: SamplingTensors) -> Tensor:
        """logits: [m, V] float32; -inf forbids a token, and each row allows at least one.

        Returns token ids [m] int64, each in [0, V) whatever the logits are, NaN included.
        """
        ...
