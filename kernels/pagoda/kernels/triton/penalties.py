"""Edits logits before sampling: biases, then penalties for tokens that were there before (vLLM's order)."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 1024


@dataclass(frozen=True)
class PenaltyTensors:
    """Penalties of m rows on the device; V vocab_size."""

    repetition: Tensor
    """[m] float32; divides positive logits of tokens of prompt and output, and multiplies the others; 1: off
    (https://arxiv.org/abs/1909.05858)."""

    presence: Tensor
    """[m] float32; taken off the logits of tokens of the output; 0: off."""

    frequency: Tensor
    """[m] float32; taken off once per time that a token is in the output; 0: off."""

    output_counts: Tensor
    """[rows, V] int32; how often a token is in the output."""

    in_prompt: Tensor
    """[rows, V] bool."""

    row_ids: Tensor
    """[m] int32; the row of the two tables."""

    bias_tokens: Tensor
    """[m, B] int32; distinct, -1: none. B may be 0."""

    bias_values: Tensor
    """[m, B] float32; added to the logits of bias_tokens."""


def apply_penalties(logits: Tensor, rows: PenaltyTensors) -> None:
    """Edits logits [m, V] float32, rows side by side, in place."""
    num_rows, vocab_size = logits.shape
    _edit[triton.cdiv(vocab_size, _CHUNK), num_rows](
        logits,
        rows.repetition,
        rows.presence,
        rows.frequency,
        rows.output_counts,
        rows.in_prompt,
        rows.row_ids,
        rows.bias_tokens,
        rows.bias_values,
        logits.stride(0),
        vocab_size,
        rows.bias_tokens.shape[1],
        CHUNK=_CHUNK,
        num_warps=4,
    )


@triton.jit
def _edit(
    logits,
    repetition,
    presence,
    frequency,
    output_counts,
    in_prompt,
    row_ids,
    bias_tokens,
    bias_values,
    row_stride,
    vocab_size,
    num_biases,
    CHUNK: tl.constexpr,
):
    """One chunk of one row."""
    start, row = tl.program_id(0) * CHUNK, tl.program_id(1).to(tl.int64)
    ids = start + tl.arange(0, CHUNK)
    mask = ids < vocab_size
    places = logits + row * row_stride + ids
    x = tl.load(places, mask=mask, other=0.0)
    for i in range(num_biases):
        token = tl.load(bias_tokens + row * num_biases + i)
        if (token >= start) & (token < start + CHUNK):
            x += tl.where(ids == token, tl.load(bias_values + row * num_biases + i), 0.0)

    repeated, present, frequent = tl.load(repetition + row), tl.load(presence + row), tl.load(frequency + row)
    if (repeated != 1) | (present != 0) | (frequent != 0):
        entry = tl.load(row_ids + row).to(tl.int64) * vocab_size + ids
        counts = tl.load(output_counts + entry, mask=mask, other=0)
        seen = (counts > 0) | (tl.load(in_prompt + entry, mask=mask, other=0) != 0)
        x = tl.where(seen, tl.where(x > 0, tl.div_rn(x, repeated), x * repeated), x)
        x -= frequent * counts.to(tl.float32)
        x -= tl.where(counts > 0, present, 0.0)
    tl.store(places, x, mask=mask)
