"""What a step brings to the device, as arrays on the host: exactly, or padded to the size of a graph."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pagoda.executor.batch import SamplingRows, StepInputs

Array = NDArray[Any]
A = TypeVar("A")

UNKNOWN = -1
"""In the place of a token that only the device knows: the one that its row has sampled last."""


class StepArrays(NamedTuple, Generic[A]):
    """A step: n rows, T tokens, m rows that sample; int64, unless said otherwise. On the host or on the device."""

    token_ids: A
    """[T]; or UNKNOWN."""

    token_rows: A
    """[T]; the row of each token."""

    positions: A
    """[T]."""

    slot_mapping: A
    """[T]; -1 = not stored."""

    cu_seqlens_q: A
    """[n + 1] int32."""

    seq_lens: A
    """[n] int32."""

    rows: A
    """[n]; ascending."""

    sample_tokens: A
    """[m]; as indices in the step's T tokens."""

    sample_rows: A
    """[m]; as `SamplingTensors` has them, and so are those below."""

    temperature: A
    top_p: A
    top_k: A
    min_p: A
    seed: A
    sample_positions: A


def step_arrays(inputs: StepInputs, sampling: SamplingRows, vocab_size: int) -> StepArrays[Array]:
    """sampling: of the rows that sample"""
    return StepArrays(
        token_ids=inputs.token_ids.astype(np.int64),
        token_rows=np.repeat(inputs.rows, np.diff(inputs.cu_seqlens_q)),
        positions=inputs.positions,
        slot_mapping=inputs.slot_mapping,
        cu_seqlens_q=inputs.cu_seqlens_q,
        seq_lens=inputs.seq_lens,
        rows=inputs.rows,
        sample_tokens=inputs.sample_tokens,
        sample_rows=inputs.sample_rows,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        # More than there are is all.
        top_k=np.minimum(sampling.top_k, vocab_size).astype(np.int32),
        min_p=sampling.min_p,
        seed=sampling.seed.view(np.int64),
        sample_positions=sampling.position,
    )


def idle_step(size: int, row: int) -> StepArrays[Array]:
    """A step of `size` rows with one token each, all of them `row`, which no request has.

    They see one token, in block 0, store nothing, and what they sample goes where nobody reads it.
    """

    def filled(value: float, dtype: type[np.generic]) -> Array:
        return np.full(size, value, dtype)

    rows, zeros = filled(row, np.int64), filled(0, np.int64)
    return StepArrays(
        token_ids=zeros,
        token_rows=rows,
        positions=zeros,
        slot_mapping=filled(-1, np.int64),
        cu_seqlens_q=np.arange(size + 1, dtype=np.int32),
        seq_lens=filled(1, np.int32),
        rows=rows,
        sample_tokens=np.arange(size),
        sample_rows=rows,
        temperature=filled(0.0, np.float32),
        top_p=filled(1.0, np.float32),
        top_k=filled(0, np.int32),
        min_p=filled(0.0, np.float32),
        seed=zeros,
        sample_positions=filled(1, np.int64),
    )


def padded(step: StepArrays[Array], idle: StepArrays[Array]) -> StepArrays[Array]:
    """A step of one token per row, from which each samples, with the last rows of an idle one behind it."""
    return StepArrays(*(np.concatenate((ours, more[len(ours) :])) for ours, more in zip(step, idle, strict=True)))
