"""The layer from hidden states to logits in C++, which need not compute tokens that no row can draw.

Of a vocabulary of 150,000 a greedy row takes one token, and one with top-k 20 takes twenty. A copy of the weights in 8
bits, which is read in half the time, tells which they can be: src/shortlist.cpp bounds its errors, so nothing is left
to chance. What is drawn is the same token, to the bit, as from all logits.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pagoda.kernels.cpu.library import INT, POINTER, SIZE, declared
from pagoda.kernels.cpu.linear import CpuLinear
from pagoda.kernels.sampling import SamplingTensors

_PANEL = 32
"""Tokens that are computed together."""

_LONGEST_PAUSE = 1024
"""Steps."""


class CpuHead(CpuLinear):
    """A `CpuLinear` in the weight's own dtype; logits are float32."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor) -> None:
        """weight: [vocab_size, hidden_size], bfloat16 or float32."""
        super().__init__(library, weight, out_dtype=torch.float32)
        self._rounded = CpuLinear(library, weight, storage="int8", out_dtype=torch.float32)
        measure = declared(library.pagoda_shortlist_errors, [POINTER, INT, SIZE, SIZE, POINTER, POINTER, INT])
        num_panels = -(-self.out_features // _PANEL)
        self._errors = torch.zeros(2, num_panels * _PANEL)  # of rounding; and how long rows of rounded weights are
        weight = weight.detach().contiguous()
        measure(
            weight.data_ptr(),
            weight.dtype is torch.bfloat16,
            *weight.shape,
            *(errors.data_ptr() for errors in self._errors),
            torch.get_num_threads(),
        )
        self._panel_errors = self._errors.view(2, num_panels, _PANEL).amax(dim=-1)
        self._shortlist = declared(
            library.pagoda_shortlist, [POINTER, SIZE, INT, SIZE, *[POINTER] * 2, SIZE, SIZE, *[POINTER] * 8, INT], INT
        )
        # Where lists are long, they cost time on top of the product: then it is tried again later, and later still.
        self._pause = self._next_pause = 0

    def shortlist(self, x: Tensor, rows: SamplingTensors) -> Tensor:
        """The logits of x [n, hidden_size], minus infinity where no token of a row that is sampled as `rows` say can be
        drawn. Returns [n, vocab_size] float32."""
        if self._pause:
            self._pause -= 1
            return self(x)
        logits = torch.empty(len(x), self.out_features)
        done = self._shortlist(
            x.data_ptr(),
            x.stride(0),
            x.dtype is torch.bfloat16,
            len(x),
            self._rounded.panels_pointer,
            self.panels_pointer,
            self.out_features,
            self.in_features,
            *(errors.data_ptr() for errors in (*self._errors, *self._panel_errors)),
            *(parameter.data_ptr() for parameter in (rows.temperature, rows.top_k, rows.min_p)),
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if done:
            self._next_pause = 0
            return logits
        self._pause = self._next_pause
        self._next_pause = min(2 * self._next_pause + 1, _LONGEST_PAUSE)
        return self(x)

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._rounded.num_bytes + self._errors.nbytes
