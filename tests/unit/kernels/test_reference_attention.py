"""Paged attention against a loop over tokens in float64, with NaN in every cache slot that nobody may read."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda.kernels.attention import SCALE_BYTES, AttentionBatch, AttentionParams
from pagoda.kernels.reference.attention import ReferenceBackend, dequantize, paged_attention, quantize, store_kv

torch.set_num_threads(1)

NUM_BLOCKS, BLOCK_SIZE = 160, 4


@dataclass
class Case:
    """A ragged batch whose keys and values also exist as one dense tensor per sequence."""

    batch: AttentionBatch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    new_lens: list[int]


def make_case(
    lens: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> Case:
    """lens: (tokens in the cache after the step, new tokens of the step) per sequence."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(NUM_BLOCKS, generator=rng).tolist()
    cache_dtype = cache_dtype or dtype
    is_int8 = cache_dtype == torch.int8
    shape = (NUM_BLOCKS, BLOCK_SIZE, kv_heads, dim + SCALE_BYTES * is_int8)
    # In int8, bytes whose scales are NaN.
    k_cache = torch.full(shape, -1 if is_int8 else math.nan, dtype=cache_dtype)
    v_cache = k_cache.clone()
    keys, values, tables = [], [], []
    for seq_len, _ in lens:
        blocks = [order.pop() for _ in range(-(-seq_len // BLOCK_SIZE))]
        slots = torch.tensor([blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(seq_len)])
        k = torch.randn(seq_len, kv_heads, dim, generator=rng).to(dtype)
        v = torch.randn(seq_len, kv_heads, dim, generator=rng).to(dtype)
        store_kv(k, v, k_cache, v_cache, slots)
        keys.append(k)
        values.append(v)
        tables.append(blocks)
    width = max(map(len, tables)) + 1
    # What lies past a table's end may not matter: here it is no valid block id.
    padded = [table + [-7] * (width - len(table)) for table in tables]
    new_lens = [new for _, new in lens]
    num_tokens = sum(new_lens)
    batch = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *itertools.accumulate(new_lens)], dtype=torch.int32),
        seq_lens=torch.tensor([n for n, _ in lens], dtype=torch.int32),
        block_tables=torch.tensor(padded, dtype=torch.int32),
        slot_mapping=torch.full((num_tokens,), -1),
    )
    q = torch.randn(num_tokens, heads, dim, generator=rng).to(dtype)
    return Case(batch, q, k_cache, v_cache, keys, values, new_lens)


def naive(case: Case, params: AttentionParams) -> Tensor:
    """One token and head at a time, in float64."""
    q = case.q.double().numpy()
    out = np.empty_like(q)
    token = 0
    for keys, values, new_len in zip(case.keys, case.values, case.new_lens, strict=True):
        k, v = keys.double().numpy(), values.double().numpy()
        group = q.shape[1] // k.shape[1]
        for position in range(len(k) - new_len, len(k)):
            first = 0 if params.sliding_window is None else max(0, position + 1 - params.sliding_window)
            for head in range(q.shape[1]):
                scores = k[first : position + 1, head // group] @ q[token, head] * params.scale
                if params.soft_cap is not None:
                    scores = params.soft_cap * np.tanh(scores / params.soft_cap)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights @ v[first : position + 1, head // group] / weights.sum()
            token += 1
    return torch.from_numpy(out)


MIXED = [(1, 1), (9, 1), (5, 5), (150, 1), (23, 7), (8, 8), (140, 133), (4, 1), (16, 1), (17, 2)]


@pytest.mark.parametrize("window", [None, 1, 5, 16, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_matches_the_naive_loop(window: int | None, soft_cap: float | None, heads: int, kv_heads: int) -> None:
    case = make_case(MIXED, heads=heads, kv_heads=kv_heads)
    params = AttentionParams(scale=0.4, sliding_window=window, soft_cap=soft_cap)
    out = paged_attention(case.q, case.k_cache, case.v_cache, case.batch, params)
    torch.testing.assert_close(out.double(), naive(case, params), atol=1e-5, rtol=1e-5)


def test_bfloat16_is_computed_in_float32() -> None:
    case = make_case(MIXED, dtype=torch.bfloat16)
    params = AttentionParams(scale=0.4)
    out = paged_attention(case.q, case.k_cache, case.v_cache, case.batch, params)
    assert out.dtype == torch.bfloat16
    # The only rounding is the last one: half a unit in the last of 8 bits.
    torch.testing.assert_close(out.double(), naive(case, params), atol=1e-5, rtol=2**-8)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    params = AttentionParams(scale=0.4, sliding_window=40)
    together = make_case(MIXED)
    out = paged_attention(together.q, together.k_cache, together.v_cache, together.batch, params)
    starts = together.batch.cu_seqlens_q.tolist()
    for i, new_len in enumerate(together.new_lens):
        rows = slice(starts[i], starts[i + 1])
        alone = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, new_len], dtype=torch.int32),
            seq_lens=together.batch.seq_lens[i : i + 1],
            block_tables=together.batch.block_tables[i : i + 1],
            slot_mapping=together.batch.slot_mapping[rows],
        )
        single = paged_attention(together.q[rows], together.k_cache, together.v_cache, alone, params)
        assert torch.equal(single, out[rows]), i


def test_a_token_does_not_depend_on_its_chunk() -> None:
    params = AttentionParams(scale=0.4, soft_cap=3.0)
    whole = make_case([(300, 300)])
    out = paged_attention(whole.q, whole.k_cache, whole.v_cache, whole.batch, params)
    for start, stop in [(0, 1), (0, 60), (60, 61), (61, 200), (200, 300), (299, 300)]:
        chunk = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, stop - start], dtype=torch.int32),
            seq_lens=torch.tensor([stop], dtype=torch.int32),
            block_tables=whole.batch.block_tables,
            slot_mapping=whole.batch.slot_mapping[start:stop],
        )
        part = paged_attention(whole.q[start:stop], whole.k_cache, whole.v_cache, chunk, params)
        assert torch.equal(part, out[start:stop])


def test_one_plan_serves_layers_with_different_windows() -> None:
    case = make_case(MIXED)
    plan = ReferenceBackend().plan(case.batch, BLOCK_SIZE)
    for window in (None, 6, None):
        params = AttentionParams(scale=0.3, sliding_window=window)
        out = plan.attend(case.q, case.k_cache, case.v_cache, params)
        torch.testing.assert_close(out.double(), naive(case, params), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dim", [8, 6, 5])
@pytest.mark.parametrize("window", [None, 5])
def test_a_cache_in_int8(window: int | None, dim: int) -> None:
    case = make_case(MIXED, dim=dim, cache_dtype=torch.int8)
    # What is read is what was stored, and nothing else.
    for part in (case.keys, case.values):
        part[:] = [dequantize(quantize(x)) for x in part]
    params = AttentionParams(scale=0.4, sliding_window=window)
    out = paged_attention(case.q, case.k_cache, case.v_cache, case.batch, params)
    torch.testing.assert_close(out.double(), naive(case, params), atol=1e-5, rtol=1e-5)


def test_int8_is_as_close_as_a_scale_per_head_allows() -> None:
    x = torch.randn(40, 3, 16) * 10 ** torch.empty(40, 3, 1).uniform_(-20, 20)
    x[0, 0], x[1, 1, 3], x[2, 2, 5] = 0.0, math.nan, math.inf
    stored = quantize(x)
    assert stored.dtype == torch.int8
    assert stored.shape == (40, 3, 16 + SCALE_BYTES)
    assert not stored[0, 0].any()
    result = dequantize(stored)
    # A head with a number that is none has none that are right, and none that look so.
    assert not result[[1, 2], [1, 2], [3, 5]].isfinite().any()
    ordinary = x.isfinite().all(-1)
    largest = x[ordinary].abs().amax(-1, keepdim=True)
    assert ((result[ordinary] - x[ordinary]).abs() <= largest / 127 * 0.50001).all()
    assert (stored[ordinary][..., :-SCALE_BYTES].abs().amax(-1, keepdim=True) == 127).logical_or(largest == 0).all()


def test_scales_of_a_whole_cache() -> None:
    case = make_case(MIXED)
    params = AttentionParams(scale=0.4, sliding_window=30, soft_cap=3.0)
    expected = paged_attention(case.q, case.k_cache, case.v_cache, case.batch, params)
    params = replace(params, k_scale=0.25, v_scale=0.5)
    out = paged_attention(case.q, case.k_cache * 4, case.v_cache * 2, case.batch, params)
    torch.testing.assert_close(out, expected)


def test_store_kv_skips_padding() -> None:
    k_cache = torch.zeros(3, 2, 1, 2)
    v_cache = torch.zeros(3, 2, 1, 2)
    k = torch.arange(1.0, 7.0).view(3, 1, 2)
    store_kv(k, -k, k_cache, v_cache, torch.tensor([5, -1, 2]))
    assert k_cache.view(6, 2).tolist() == [[0, 0], [0, 0], [5, 6], [0, 0], [0, 0], [1, 2]]
    assert torch.equal(v_cache, -k_cache)
