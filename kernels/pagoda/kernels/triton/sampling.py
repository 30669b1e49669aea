"""Draws tokens from logits on the device: filters and a draw, with no sort and no random state.

The draw is the one of `pagoda.executor.sampler`: the same filters in the same order (temperature, min-p, top-k, top-p;
each keeps what is at or above a bound), the same random number for (seed, position), inverted through the same
cumulative distribution. Here weights are summed as integers, so that a sum does not depend on its order, and a row's
token on nothing but the row. Against sums of floats a token may differ when a bound or the random number falls within
about 1e-7 of a step of the distribution.

How bounds are found: the weights of a row lie in (0, 1], and their bits order as they do. For 15 edges, 1, 1/4, 1/16,
..., each chunk of the vocabulary counts and sums the weights from the edge up. One edge is then known to lie below the
bound; tokens from there up are gathered, in most rows a few hundred, and the bound is bisected among their bits.

Shape legend: m rows, V vocab_size, C chunks of it, E edges (the last one is 0: all tokens). A token's weight is its
probability divided by that of the most likely token of its row.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda.kernels.sampling import SamplingTensors

_EDGES = 16
_CHUNK = 4096
# Candidates that stay in registers while their bound is bisected.
_FEW = 2048

_ONE: tl.constexpr = tl.constexpr(0x3F800000)  # bits of 1.0, the weight of the most likely token
# Weights as integers: sums stay below 2**63 up to MAX_VOCAB_SIZE tokens, and what is lost is below 2**-43 of the first.
_UNIT: tl.constexpr = tl.constexpr(2.0**43)
MAX_VOCAB_SIZE = 1 << 19


def sample(logits: Tensor, rows: SamplingTensors, *, chunk: int = _CHUNK, few: int = _FEW) -> Tensor:
    """Draws a token per row.

    logits: [m, V] float32, V <= MAX_VOCAB_SIZE, numbers of a row side by side; -inf forbids a token, and each row
    allows at least one
    chunk, few: sizes of the work, powers of two; results do not depend on them

    Returns token ids [m] int64; any token of the vocabulary for a row with NaN, which stays its own trouble.
    """
    num_rows, vocab_size = logits.shape
    assert vocab_size <= MAX_VOCAB_SIZE
    chunks = triton.cdiv(vocab_size, chunk)
    padded_chunks = triton.next_power_of_2(chunks)
    tokens = logits.new_empty(num_rows, dtype=torch.int64)
    maxima = logits.new_empty(num_rows, chunks)
    argmaxima = logits.new_empty((num_rows, chunks), dtype=torch.int32)
    counts = logits.new_empty((num_rows, _EDGES, chunks), dtype=torch.int32)
    sums = logits.new_empty((num_rows, _EDGES, chunks), dtype=torch.int64)
    candidates = logits.new_empty((num_rows, vocab_size), dtype=torch.int32)
    lowest_edges = logits.new_empty(num_rows, dtype=torch.int32)
    filters = (rows.temperature, rows.top_p, rows.top_k, rows.min_p)
    sizes = {"EDGES": _EDGES, "CHUNK": chunk, "CHUNKS": padded_chunks}
    grid = (chunks, num_rows)
    _maximum[grid](logits, maxima, argmaxima, rows.temperature, logits.stride(0), vocab_size, CHUNK=chunk, num_warps=8)
    _measure_edges[grid](logits, maxima, counts, sums, *filters, logits.stride(0), vocab_size, **sizes, num_warps=8)
    _gather_candidates[grid](
        logits,
        maxima,
        counts,
        sums,
        candidates,
        lowest_edges,
        *filters,
        logits.stride(0),
        vocab_size,
        **sizes,
        num_warps=8,
    )
    _draw[(num_rows,)](
        logits,
        maxima,
        argmaxima,
        counts,
        sums,
        candidates,
        lowest_edges,
        tokens,
        *filters,
        rows.seed,
        rows.position,
        logits.stride(0),
        vocab_size,
        chunks,
        FEW=few,
        **sizes,
        num_warps=16,
    )
    return tokens


@triton.jit
def _maximum(logits, maxima, argmaxima, temperature, row_stride, vocab_size, CHUNK: tl.constexpr):
    """The largest logit of one chunk of one row, and the first token that has it."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * row_stride + ids, mask=ids < vocab_size, other=float("-inf"))
    top = tl.max(x, 0)
    place = row * tl.num_programs(0) + chunk
    tl.store(maxima + place, top)
    if tl.load(temperature + row) <= 0:
        tl.store(argmaxima + place, tl.min(tl.where(x == top, ids, vocab_size), 0))


@triton.jit
def _measure_edges(
    logits,
    maxima,
    counts,
    sums,
    temperature,
    top_p,
    top_k,
    min_p,
    row_stride,
    vocab_size,
    EDGES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Number and sum of the weights of one chunk from each edge up; of all of them only, in a row without filters."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat <= 0:
        return
    chunks = tl.num_programs(0)
    top = _row_maximum(maxima + row * chunks, chunks, CHUNKS)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    weights = _weights(logits + row * row_stride, ids, vocab_size, top, heat)
    amounts = _amounts(weights)
    place = row * EDGES * chunks + chunk
    if _is_filtered(tl.load(top_p + row), tl.load(top_k + row), tl.load(min_p + row), vocab_size):
        bits = weights.to(tl.int32, bitcast=True)
        for edge in tl.static_range(EDGES - 1):
            above = bits >= _edge_bits(edge, EDGES)
            tl.store(counts + place + edge * chunks, tl.sum(above.to(tl.int32), 0))
            tl.store(sums + place + edge * chunks, tl.sum(tl.where(above, amounts, 0), 0))
        tl.store(counts + place + (EDGES - 1) * chunks, tl.minimum(vocab_size - chunk * CHUNK, CHUNK))
    tl.store(sums + place + (EDGES - 1) * chunks, tl.sum(amounts, 0))


@triton.jit
def _gather_candidates(
    logits,
    maxima,
    counts,
    sums,
    candidates,
    lowest_edges,
    temperature,
    top_p,
    top_k,
    min_p,
    row_stride,
    vocab_size,
    EDGES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Chooses the highest edge that no bound lies above, and lists the tokens from it up, in their order."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat <= 0:
        return
    share, rank, least = tl.load(top_p + row), tl.load(top_k + row), tl.load(min_p + row)
    if not _is_filtered(share, rank, least, vocab_size):
        return
    chunks = tl.num_programs(0)
    edges = tl.arange(0, EDGES)
    edge_counts = tl.sum(_by_edge(counts, row, chunks, EDGES, CHUNKS), 1)
    edge_sums = tl.sum(_by_edge(sums, row, chunks, EDGES, CHUNKS), 1)

    lowest = EDGES - 1
    if _is_limited(rank, vocab_size) | (least > 0):
        # Top-p is a share of what these two keep, which is known only once their bounds are.
        if _is_limited(rank, vocab_size):
            lowest = tl.min(tl.where(edge_counts >= rank, edges, EDGES - 1), 0)
        if least > 0:
            below = _edge_bits(edges, EDGES) <= _bits_of(tl.minimum(least, 1.0))
            lowest = tl.minimum(lowest, tl.min(tl.where(below, edges, EDGES - 1), 0))
    else:
        needed = _share_of(share, _pick(edge_sums, edges, EDGES - 1))
        lowest = tl.min(tl.where(edge_sums >= needed, edges, EDGES - 1), 0)

    others = tl.arange(0, CHUNKS)
    before = tl.load(counts + (row * EDGES + lowest) * chunks + others, mask=others < chunk, other=0)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    top = _row_maximum(maxima + row * chunks, chunks, CHUNKS)
    bits = _weights(logits + row * row_stride, ids, vocab_size, top, heat).to(tl.int32, bitcast=True)
    listed = (bits >= _edge_bits(lowest, EDGES)) & (ids < vocab_size)
    places = tl.sum(before, 0) + tl.cumsum(listed.to(tl.int32), 0) - 1
    tl.store(candidates + row * vocab_size + places, ids, mask=listed)
    if chunk == 0:
        tl.store(lowest_edges + row, lowest)


@triton.jit
def _draw(
    logits,
    maxima,
    argmaxima,
    counts,
    sums,
    candidates,
    lowest_edges,
    tokens,
    temperature,
    top_p,
    top_k,
    min_p,
    seed,
    position,
    row_stride,
    vocab_size,
    chunks,
    EDGES: tl.constexpr,
    FEW: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One row's token."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    top = _row_maximum(maxima + row * chunks, chunks, CHUNKS)
    every = tl.arange(0, CHUNKS)
    if heat <= 0:
        chunk_tops = tl.load(maxima + row * chunks + every, mask=every < chunks, other=float("-inf"))
        first = tl.min(tl.where((chunk_tops == top) & (every < chunks), every, chunks - 1), 0)
        _store_token(tokens + row, tl.load(argmaxima + row * chunks + first), vocab_size)
        return
    share, rank, least = tl.load(top_p + row), tl.load(top_k + row), tl.load(min_p + row)
    draw = _random_bits(tl.load(seed + row), tl.load(position + row))
    logits += row * row_stride
    last_edge = (row * EDGES + EDGES - 1) * chunks
    chunk_sums = tl.load(sums + last_edge + every, mask=every < chunks, other=0)
    if not _is_filtered(share, rank, least, vocab_size):
        target = _scaled(draw, tl.sum(chunk_sums, 0))
        ends = tl.cumsum(chunk_sums, 0)
        chunk = tl.sum((ends <= target).to(tl.int32), 0)
        before = tl.sum(tl.where(ends <= target, chunk_sums, 0), 0)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        amounts = _amounts(_weights(logits, ids, vocab_size, top, heat))
        index = _passing(amounts, target - before)
        _store_token(tokens + row, chunk * CHUNK + index, vocab_size)
        return

    lowest = tl.load(lowest_edges + row)
    edge = (row * EDGES + lowest) * chunks
    num_candidates = tl.sum(tl.load(counts + edge + every, mask=every < chunks, other=0), 0)
    candidates += row * vocab_size
    floor = _edge_bits(lowest, EDGES)
    bound = tl.maximum(floor, _bits_of(tl.minimum(least, 1.0)))
    limits = _is_limited(rank, vocab_size) | (least > 0)
    total = tl.sum(chunk_sums, 0)

    if num_candidates <= FEW:
        few = tl.arange(0, FEW)
        ids = tl.load(candidates + few, mask=few < num_candidates, other=vocab_size)
        weights = _weights(logits, ids, vocab_size, top, heat)
        bits = weights.to(tl.int32, bitcast=True)
        amounts = _amounts(weights)
        if _is_limited(rank, vocab_size):
            there = (ids < vocab_size).to(tl.int64)
            bound = tl.maximum(bound, _highest_bound(bits, there, floor, rank.to(tl.int64)))
        if limits:
            total = tl.sum(tl.where(bits >= bound, amounts, 0), 0)
        if share < 1:
            bound = _highest_bound(bits, amounts, bound, _share_of(share, total))
        amounts = tl.where(bits >= bound, amounts, 0)
        index = _passing(amounts, _scaled(draw, tl.sum(amounts, 0)))
        found = tl.load(candidates + index, mask=index < num_candidates, other=0)
        _store_token(tokens + row, found, vocab_size)
    else:
        _store_token(tokens + row, 0, vocab_size)
        if _is_limited(rank, vocab_size):
            kth = _highest_bound_of_many(
                logits, candidates, num_candidates, vocab_size, top, heat, floor, rank.to(tl.int64), True, CHUNK
            )
            bound = tl.maximum(bound, kth)
        if limits:
            total = _sum_of_many(logits, candidates, num_candidates, vocab_size, top, heat, bound, False, CHUNK)
        if share < 1:
            needed = _share_of(share, total)
            bound = _highest_bound_of_many(
                logits, candidates, num_candidates, vocab_size, top, heat, bound, needed, False, CHUNK
            )
        total = _sum_of_many(logits, candidates, num_candidates, vocab_size, top, heat, bound, False, CHUNK)
        target = _scaled(draw, total)
        for first in range(0, num_candidates, CHUNK):
            ids, bits, amounts = _load_many(logits, candidates, first, num_candidates, vocab_size, top, heat, CHUNK)
            amounts = tl.where(bits >= bound, amounts, 0)
            size = tl.sum(amounts, 0)
            if (target >= 0) & (target < size):
                index = first + _passing(amounts, target)
                found = tl.load(candidates + index, mask=index < num_candidates, other=0)
                _store_token(tokens + row, found, vocab_size)
            # Below 0 once the token was found.
            target -= size


@triton.jit
def _store_token(place, token, vocab_size):
    """A token beyond the vocabulary, of a row with NaN, would be read out of bounds by the next step's embedding."""
    tl.store(place, tl.minimum(token, vocab_size - 1).to(tl.int64))


@triton.jit
def _row_maximum(maxima, chunks, CHUNKS: tl.constexpr):
    every = tl.arange(0, CHUNKS)
    return tl.max(tl.load(maxima + every, mask=every < chunks, other=float("-inf")), 0)


@triton.jit
def _weights(logits, ids, vocab_size, top, heat):
    """Weights of tokens; 0 for ids from vocab_size on."""
    x = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf"))
    # The maximum is taken off first: then no temperature, however small, overflows.
    return tl.exp((x - top) / heat)


@triton.jit
def _amounts(weights):
    """Weights as int64, in units of 1 / _UNIT."""
    return (weights * _UNIT).to(tl.int64)


@triton.jit
def _bits_of(x):
    """The bits of a float32, which order like it from 0 on."""
    return x.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _edge_bits(edge, EDGES: tl.constexpr):
    """The bits of 4 ** -edge; the last edge is 0."""
    return tl.where(edge == EDGES - 1, 0, (127 - 2 * edge) << 23)


@triton.jit
def _is_limited(rank, vocab_size):
    return (rank > 0) & (rank < vocab_size)


@triton.jit
def _is_filtered(share, rank, least, vocab_size):
    return _is_limited(rank, vocab_size) | (share < 1) | (least > 0)


@triton.jit
def _by_edge(values, row, chunks, EDGES: tl.constexpr, CHUNKS: tl.constexpr):
    """[EDGES, CHUNKS] of one row."""
    edges, every = tl.arange(0, EDGES), tl.arange(0, CHUNKS)
    pointers = values + (row * EDGES + edges[:, None]) * chunks + every[None, :]
    return tl.load(pointers, mask=(every < chunks)[None, :], other=0)


@triton.jit
def _pick(values, indices, index):
    return tl.sum(tl.where(indices == index, values, 0), 0)


@triton.jit
def _share_of(share, total):
    """The least integer that is not less than share * total."""
    return tl.ceil(share.to(tl.float64) * total.to(tl.float64)).to(tl.int64)


@triton.jit
def _random_bits(seed, position):
    """52 random bits for (seed, position), leading in a uint64: Philox-4x32-10, as in `pagoda.executor.philox`."""
    at = position.to(tl.uint64)
    zero = tl.full((), 0, tl.uint32)
    high, low, _, _ = tl.philox(
        seed.to(tl.uint64), (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32), zero, zero
    )
    low = (low.to(tl.uint32) >> 12) << 12
    return (high.to(tl.uint32).to(tl.uint64) << 32) | low.to(tl.uint64)


@triton.jit
def _scaled(draw, total):
    """floor(draw / 2**64 * total): integers that exceed this are those that exceed the product."""
    return tl.umulhi(draw, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def _passing(amounts, target):
    """The index at which the running sum passes target; never one with an amount of 0."""
    return tl.sum((tl.cumsum(amounts, 0) <= target).to(tl.int32), 0)


@triton.jit
def _highest_bound(bits, amounts, low, needed):
    """The highest bound at or above which the amounts sum up to `needed`; `low`, if no higher one does."""
    high = tl.full((), _ONE + 1, tl.int32)  # nothing is up there
    while high - low > 1:
        middle = (low + high) // 2
        enough = tl.sum(tl.where(bits >= middle, amounts, 0), 0) >= needed
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    # Without this a bound of nothing needed would lie above every weight.
    return tl.minimum(low, _ONE)


@triton.jit
def _load_many(logits, candidates, first, num_candidates, vocab_size, top, heat, CHUNK: tl.constexpr):
    """Ids, bits of weights and amounts of CHUNK candidates from `first` on."""
    places = first + tl.arange(0, CHUNK)
    ids = tl.load(candidates + places, mask=places < num_candidates, other=vocab_size)
    weights = _weights(logits, ids, vocab_size, top, heat)
    return ids, weights.to(tl.int32, bitcast=True), _amounts(weights)


@triton.jit
def _sum_of_many(
    logits,
    candidates,
    num_candidates,
    vocab_size,
    top,
    heat,
    bound,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The number (if COUNT) or sum of the candidates from `bound` up."""
    total = tl.full((), 0, tl.int64)
    for first in range(0, num_candidates, CHUNK):
        ids, bits, amounts = _load_many(logits, candidates, first, num_candidates, vocab_size, top, heat, CHUNK)
        if COUNT:
            amounts = (ids < vocab_size).to(tl.int64)
        total += tl.sum(tl.where(bits >= bound, amounts, 0), 0)
    return total


@triton.jit
def _highest_bound_of_many(
    logits,
    candidates,
    num_candidates,
    vocab_size,
    top,
    heat,
    low,
    needed,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`_highest_bound` over all candidates, read anew for each step."""
    high = tl.full((), _ONE + 1, tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        total = _sum_of_many(logits, candidates, num_candidates, vocab_size, top, heat, middle, COUNT, CHUNK)
        low = tl.where(total >= needed, middle, low)
        high = tl.where(total >= needed, high, middle)
    return tl.minimum(low, _ONE)
