"""The layer from hidden states to logits in C++, which need not compute tokens that no row can draw.

Of a vocabulary of 150,000 a greedy row takes one token, and one with top-k 20 takes twenty. A copy of the weights in 8
bits, which is read in half the time, tells which they can be: src/shortlist.cpp bounds its errors, so nothing is left
to chance. What is drawn is the same token, to the bit, as from all logits.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from pagoda.kernels.cpu.library import INT, POINTER, SIZE, declared
from pagoda.kernels.cpu.linear import CpuLinear
from pagoda.kernels.sampling import SamplingTensors, Shortlist

_PANEL = 32
"""Tokens that are computed together."""

_LONGEST_PAUSE = 1024
"""Steps."""

_MOST_BYTES = 20 << 20
"""Of approximate logits, unless those of one row are more: so few that they stay in the processor's cache."""


class _Memory(NamedTuple):
    """For a few rows: approximate logits [rows, vocab_size], the panels that each row needs, and how many they are."""

    logits: Tensor
    panels: Tensor
    counts: Tensor


class CpuHead(CpuLinear):
    """A `CpuLinear` in the weight's own dtype; logits are float32. For one thread."""

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
            library.pagoda_shortlist, [POINTER, SIZE, INT, SIZE, *[POINTER] * 2, SIZE, SIZE, *[POINTER] * 10, INT], SIZE
        )
        self._gather = declared(
            library.pagoda_shortlist_gather, [POINTER, SIZE, SIZE, POINTER, POINTER, SIZE, POINTER, POINTER]
        )
        # Untouched pages cost nothing.
        self._most_rows = max(1, _MOST_BYTES // (4 * self.out_features))
        self._memory = _Memory(
            torch.empty(self._most_rows, self.out_features),
            torch.empty(self._most_rows, num_panels, dtype=torch.int32),
            torch.empty(self._most_rows, dtype=torch.int32),
        )
        # Where lists are long, they cost time on top of the product: then it is tried again later, and later still.
        self._pause = self._next_pause = 0

    def shortlist(self, x: Tensor, rows: SamplingTensors) -> Shortlist | None:
        """The tokens that can be drawn of the logits of x [n, hidden_size] if it is done as `rows` say. None: too many,
        or nobody knows."""
        if self._pause:
            self._pause -= 1
            return None
        parts = []
        for first in range(0, len(x), self._most_rows):
            part = self._part(x[first : first + self._most_rows], rows, first)
            if part is None:
                self._pause = self._next_pause
                self._next_pause = min(2 * self._next_pause + 1, _LONGEST_PAUSE)
                return None
            parts.append(part)
        self._next_pause = 0
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _part(self, x: Tensor, rows: SamplingTensors, first: int) -> Shortlist | None:
        """Of rows that are sampled as rows[first : first + len(x)]."""
        memory = self._memory
        width = self._shortlist(
            x.data_ptr(),
            x.stride(0),
            x.dtype is torch.bfloat16,
            len(x),
            self._rounded.panels_pointer,
            self.panels_pointer,
            self.out_features,
            self.in_features,
            *(errors.data_ptr() for errors in (*self._errors, *self._panel_errors)),
            *(parameter[first:].data_ptr() for parameter in (rows.temperature, rows.top_k, rows.min_p)),
            *(part.data_ptr() for part in memory),
            torch.get_num_threads(),
        )
        if not width:
            return None
        found = Shortlist(torch.empty(len(x), width * _PANEL), torch.empty(len(x), width * _PANEL, dtype=torch.int64))
        self._gather(
            memory.logits.data_ptr(),
            len(x),
            self.out_features,
            memory.panels.data_ptr(),
            memory.counts.data_ptr(),
            width,
            found.logits.data_ptr(),
            found.token_ids.data_ptr(),
        )
        return found

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._rounded.num_bytes + self._errors.nbytes


def _joined(parts: list[Shortlist]) -> Shortlist:
    width = max(part.logits.shape[1] for part in parts)

    def padded(tensor: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return Shortlist(
        torch.cat([padded(part.logits, float("-inf")) for part in parts]),
        torch.cat([padded(part.token_ids, 0) for part in parts]),
    )
