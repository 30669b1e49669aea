"""Attention kernels against the reference, with NaN wherever nobody may read.

The interpreter multiplies float32 and float16 matrices rightly, bfloat16 ones not.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from triton_cases import paged_case

from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.tuning import tuned_for

MIXED = [(1, 1), (9, 1), (5, 5), (150, 1), (23, 7), (90, 73), (64, 1), (17, 2)]
FULL = AttentionParams(0.4)

# float32 works on fewer keys at a time than the shortest split.
SPLIT = 32


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"), [(4, 2, 8, 4), (6, 2, 24, 16), (4, 4, 16, 8), (7, 1, 8, 4)]
)
@pytest.mark.parametrize(
    "params",
    [FULL, AttentionParams(0.4, sliding_window=5), AttentionParams(0.3, sliding_window=40, soft_cap=2.0)],
    ids=["full", "window", "window and cap"],
)
def test_matches_the_reference(heads: int, kv_heads: int, dim: int, block_size: int, params: AttentionParams) -> None:
    case = paged_case(
        MIXED, heads=heads, kv_heads=kv_heads, dim=dim, block_size=block_size, dtype=torch.float32, host=dim == 8
    )
    plan = TritonBackend(split_len=SPLIT).plan(case.batch, block_size)
    out = plan.attend(case.q, case.k_cache, case.v_cache, params)
    torch.testing.assert_close(out, case.reference(params), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 32, 33, 1000])
def test_windows_that_end_on_a_boundary(window: int) -> None:
    params = AttentionParams(0.4, sliding_window=window)
    case = paged_case([(96, 1), (97, 1), (70, 40)], heads=2, kv_heads=1, dim=8, block_size=8, dtype=torch.float32)
    out = TritonBackend(split_len=SPLIT).plan(case.batch, 8).attend(case.q, case.k_cache, case.v_cache, params)
    torch.testing.assert_close(out, case.reference(params), atol=1e-5, rtol=1e-5)


def test_float16() -> None:
    case = paged_case(MIXED, heads=4, kv_heads=2, dim=16, block_size=16, dtype=torch.float16, host=True)
    out = TritonBackend().plan(case.batch, 16).attend(case.q, case.k_cache, case.v_cache, FULL)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), case.reference(FULL), atol=2e-3, rtol=2**-9)


@pytest.mark.parametrize("target", ["sm_90", "sm_80"], ids=["converted", "taken apart"])
def test_float8_cache(target: str) -> None:
    """On an A100 Triton has no conversion of float8_e4m3fn."""
    params = AttentionParams(0.1, k_scale=3.5, v_scale=0.25)
    case = paged_case(
        MIXED, heads=4, kv_heads=2, dim=16, block_size=16, dtype=torch.float16, cache_dtype=torch.float8_e4m3fn
    )
    with tuned_for(target):
        out = TritonBackend().plan(case.batch, 16).attend(case.q, case.k_cache, case.v_cache, params)
    torch.testing.assert_close(out.float(), case.reference(params), atol=2e-3, rtol=2**-9)


def test_many_splits_are_merged() -> None:
    """More of them than the merging kernel takes at a time; and in the longest row, longer ones."""
    case = paged_case([(700, 1), (1500, 1), (31, 1)], heads=2, kv_heads=1, dim=8, block_size=16, dtype=torch.float32)
    for params in (FULL, AttentionParams(0.4, sliding_window=90)):
        out = TritonBackend(split_len=SPLIT).plan(case.batch, 16).attend(case.q, case.k_cache, case.v_cache, params)
        torch.testing.assert_close(out, case.reference(params), atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """With splits of a fixed length: longer neighbours, a mixed step, lengths on the host or not."""
    backend = TritonBackend(split_len=SPLIT)
    case = paged_case(MIXED, heads=4, kv_heads=2, dim=8, block_size=4, dtype=torch.float32)
    together = backend.plan(case.batch, 4).attend(case.q, case.k_cache, case.v_cache, FULL)
    starts = case.batch.cu_seqlens_q.tolist()
    for i, (seq_len, new) in enumerate(MIXED):
        rows = slice(starts[i], starts[i + 1])
        alone = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, new], dtype=torch.int32),
            seq_lens=case.batch.seq_lens[i : i + 1],
            block_tables=case.batch.block_tables[i : i + 1],
            slot_mapping=case.batch.slot_mapping[rows],
        )
        alone = dataclasses.replace(alone, host=HostLengths(alone.cu_seqlens_q.numpy(), alone.seq_lens.numpy()))
        single = backend.plan(alone, 4).attend(case.q[rows], case.k_cache, case.v_cache, FULL)
        assert torch.equal(single, together[rows]), (seq_len, new)


def test_one_plan_serves_layers_with_different_masks_and_strided_queries() -> None:
    case = paged_case(MIXED, heads=4, kv_heads=2, dim=8, block_size=4, dtype=torch.float32, host=True)
    plan = TritonBackend(split_len=SPLIT).plan(case.batch, 4)
    wide = torch.cat((case.q, torch.full_like(case.q, torch.nan)), dim=1)
    for params in (AttentionParams(0.4, sliding_window=6), FULL):
        out = plan.attend(wide[:, :4], case.k_cache, case.v_cache, params)
        torch.testing.assert_close(out, case.reference(params), atol=1e-5, rtol=1e-5)
