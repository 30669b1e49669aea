"""Draws tokens from logits.

A token is a pure function of its row's logits, parameters, seed and position: random numbers are counter-based
(`philox`), and no operation mixes rows. The order of filters is vLLM's: temperature, min-p, top-k, top-p. Each of them
keeps the tokens at or above a bound, so equally likely tokens are kept or dropped together.

On a CPU this runs in C++ where that can be compiled; `pagoda.kernels.cpu.sampling` says what may differ from torch.

Shape legend: m rows, V vocab_size, padded to whole chunks. A token's weight is its probability divided by that of the
most likely token of its row.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.batch import SamplingRows
from pagoda.executor.philox import uniform
from pagoda.executor.plan_arrays import Int64
from pagoda.kernels.cpu.library import library
from pagoda.kernels.cpu.sampling import CpuSampler
from pagoda.kernels.sampling import SamplingTensors

# A nucleus is looked for among this many of the most likely tokens, then among so many times more, and so on.
_FIRST_CANDIDATES, _MORE_CANDIDATES = 64, 8
# Tokens per partial sum of the cumulative distribution.
_CHUNK = 256


def sample(logits: Tensor, rows: SamplingRows) -> Int64:
    """logits: [m, vocab_size] float32; -inf forbids a token, and each row allows at least one.

    Returns token ids [m].
    """
    native = _native() if logits.device.type == "cpu" else None
    return sample_with_torch(logits, rows) if native is None else _to_numpy(native(logits, to_tensors(rows)))


def sample_with_torch(logits: Tensor, rows: SamplingRows) -> Int64:
    """`sample` on any device, and what the native sampler is tested against."""
    random = rows.temperature > 0
    if not random.any():
        return _to_numpy(logits.argmax(dim=-1))
    if random.all():
        return _draw(logits, rows)
    tokens = np.empty(len(random), np.int64)
    mask = torch.from_numpy(random).to(logits.device)
    tokens[~random] = _to_numpy(logits[~mask].argmax(dim=-1))
    tokens[random] = _draw(logits[mask], rows.select(random))
    return tokens


@functools.cache
def _native() -> CpuSampler | None:
    kernels = library()
    return CpuSampler(kernels) if kernels else None


def to_tensors(rows: SamplingRows) -> SamplingTensors:
    """The same in host memory."""
    columns = (rows.temperature, rows.top_p, rows.top_k.astype(np.int32), rows.min_p, rows.seed.view(np.int64))
    return SamplingTensors(*map(torch.from_numpy, (*columns, rows.position)))


def _draw(logits: Tensor, rows: SamplingRows) -> Int64:
    device = logits.device
    size = logits.shape[-1]
    weights = logits.new_full((len(logits), size + -size % _CHUNK), float("-inf"))
    # The maximum is taken off first: then no temperature, however small, overflows.
    torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=weights[:, :size])
    weights.div_(_column(rows.temperature, device)).exp_()
    filters = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
    if filters.all():
        _filter(weights, rows)
    elif filters.any():
        mask = torch.from_numpy(filters).to(device)
        weights[mask] = _filter(weights[mask], rows.select(filters))
    return _to_numpy(_invert_cdf(weights, _column(uniform(rows.seed, rows.position.astype(np.uint64)), device)))


def _filter(weights: Tensor, rows: SamplingRows) -> Tensor:
    """Clears, in place, the weights [m, V] that min-p, top-k and top-p drop; returns them."""
    device, size = weights.device, weights.shape[-1]
    bound = _column(np.minimum(rows.min_p, 1.0), device)  # the most likely token always stays
    limited = (rows.top_k > 0) & (rows.top_k < size)
    if limited.any():
        ranks = np.where(limited, rows.top_k, 1)
        kth = weights.topk(int(ranks.max())).values.gather(1, _column(ranks - 1, device))
        bound = torch.where(_column(limited, device), bound.maximum(kth), bound)
    weights.masked_fill_(weights < bound, 0.0)
    if (rows.top_p < 1).any():
        nucleus = _nucleus_bound(weights, _column(rows.top_p, device).double(), _FIRST_CANDIDATES)
        weights.masked_fill_((weights < nucleus) & _column(rows.top_p < 1, device), 0.0)
    return weights


def _nucleus_bound(weights: Tensor, top_p: Tensor, num_candidates: int) -> Tensor:
    """The weight of the last token of the smallest set that has a share of top_p, [m, 1].

    weights: [m, V]; top_p: [m, 1] float64
    num_candidates: how many of the most likely tokens are sorted at first; more for rows whose set is larger
    """
    num_candidates = min(num_candidates, weights.shape[1])
    candidates = weights.topk(num_candidates).values  # largest first
    target = top_p * _chunk_sums(weights).sum(dim=-1, keepdim=True)
    # The set ends with the first candidate at which the sum reaches the target.
    index = (candidates.double().cumsum(dim=-1) < target).sum(dim=-1, keepdim=True)
    bound = candidates.gather(1, index.clamp(max=num_candidates - 1))
    beyond = (index == num_candidates).squeeze(1)
    if num_candidates < weights.shape[1] and beyond.any():
        bound[beyond] = _nucleus_bound(weights[beyond], top_p[beyond], num_candidates * _MORE_CANDIDATES)
    return bound


def _invert_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes u.

    weights: [m, V] float32, not normalized; u: [m, 1] float64 in [0, 1)

    The sum runs over chunks first, then within one chunk, so that only [m, V / chunk] partial sums are accumulated.
    Returns [m] int64; never a token of weight 0.
    """
    sums = _chunk_sums(weights).cumsum(dim=-1)
    target = u * sums[:, -1:]
    chunk = (sums <= target).sum(dim=-1, keepdim=True)  # [m, 1]; the first chunk whose sum exceeds the target
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp(min=0)), 0.0)
    inside = weights.view(len(weights), -1, _CHUNK)[torch.arange(len(weights), device=weights.device), chunk.squeeze(1)]
    index = (before + inside.double().cumsum(dim=-1) <= target).sum(dim=-1)
    # The two ways to sum a chunk round differently: what falls between them belongs to its last token.
    last = _CHUNK - 1 - (inside > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    return chunk.squeeze(1) * _CHUNK + torch.minimum(index, last)


def _chunk_sums(weights: Tensor) -> Tensor:
    """[m, V / chunk] float64."""
    return weights.view(len(weights), -1, _CHUNK).sum(dim=-1).double()


def _column(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(1)


def _to_numpy(tokens: Tensor) -> Int64:
    array: Int64 = tokens.cpu().numpy()
    return array
