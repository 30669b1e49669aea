"""Draws tokens from logits in C++ (src/sampling.cpp): all rows of a step in one call, whatever their parameters.

Filters, their order and the random number of (seed, position) are those of `pagoda.executor.sampler`. Nothing is
sorted: a bound below which everything is dropped leaves a short list in most rows, and the exact bounds are found in
that list by bisecting the bits of weights.

What is equal to the sampler in torch: a greedy row's token, always; of the other rows all but rounding. Weights differ
in their last bit, as the two exponential functions do, and sums are in double precision here. So a token differs only
if the random number falls within about 1e-6 of a step of the cumulative distribution, or if a filter's bound falls so
close to a weight (min-p, top-k) or to a sum of weights (top-p) that it lies on the other side: a nucleus then ends one
weight earlier or later. Equal logits have equal weights in both and are kept or dropped together. A row that is no
distribution, with NaN or +inf or nothing but -inf, gives token 0 in both, unless it is greedy.

Bits: a row's token depends on its own logits and parameters, and on the processor's instructions, which have sums run
over more or fewer lanes and may fuse a multiplication with an addition. It does not depend on other rows or the number
of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pagoda.kernels.cpu.library import INT, POINTER, SIZE, declared
from pagoda.kernels.sampling import SamplingTensors


class CpuSampler:
    """See `SampleTokens`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sample = declared(library.pagoda_sample, [POINTER, SIZE, SIZE, SIZE, *[POINTER] * 7, INT])

    def __call__(self, logits: Tensor, rows: SamplingTensors) -> Tensor:
        assert logits.dtype is torch.float32
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        parameters = (rows.temperature, rows.top_p, rows.top_k, rows.min_p, rows.seed, rows.position)
        assert all(parameter.is_contiguous() for parameter in parameters)
        num_rows, vocab_size = logits.shape
        tokens = torch.empty(num_rows, dtype=torch.int64)
        self._sample(
            logits.data_ptr(),
            logits.stride(0),
            num_rows,
            vocab_size,
            *(parameter.data_ptr() for parameter in parameters),
            tokens.data_ptr(),
            torch.get_num_threads(),
        )
        return tokens
