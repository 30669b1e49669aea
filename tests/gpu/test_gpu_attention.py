"""Attention on the device against the reference in float32, at real shapes, with NaN wherever nobody may read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from triton_cases import PagedCase, paged_case

from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.triton.backend import TritonBackend

BLOCK_SIZE = 16
DTYPES = [torch.bfloat16, torch.float16]
CACHES = [None, torch.float8_e4m3fn]

DECODING = [(1, 1), (17, 1), (511, 1), (512, 1), (513, 1), (3000, 1), (9000, 1)]
CHUNKS = [(5, 5), (700, 700), (1025, 513), (4000, 129), (64, 2)]


def check(case: PagedCase, params: AttentionParams, backend: TritonBackend | None = None) -> Tensor:
    plan = (backend or TritonBackend()).plan(case.batch, BLOCK_SIZE)
    out = plan.attend(case.q, case.k_cache, case.v_cache, params)
    # Weights and result are rounded to the dtype: two units of it, and as much of the mean size of a value.
    epsilon = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.float(), case.reference(params), rtol=2 * epsilon, atol=2 * epsilon)
    return out


@pytest.mark.parametrize("cache_dtype", CACHES, ids=["same", "float8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (14, 2, 64), (8, 4, 256), (8, 8, 96)])
@pytest.mark.parametrize("lens", [DECODING, CHUNKS, DECODING + CHUNKS], ids=["decoding", "chunks", "mixed"])
def test_matches_the_reference(
    lens: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    case = paged_case(
        lens,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        block_size=BLOCK_SIZE,
        dtype=dtype,
        cache_dtype=cache_dtype,
        device="cuda",
        host=len(lens) != len(CHUNKS),
    )
    scales = {"k_scale": 0.5, "v_scale": 0.75} if cache_dtype else {}
    check(case, AttentionParams(dim**-0.5, **scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "params",
    [
        AttentionParams(0.09, sliding_window=1),
        AttentionParams(0.09, sliding_window=128),
        AttentionParams(0.09, sliding_window=777, soft_cap=50.0),
        AttentionParams(0.09, soft_cap=5.0),
    ],
    ids=str,
)
def test_windows_and_caps(params: AttentionParams, dtype: torch.dtype) -> None:
    case = paged_case(
        DECODING + CHUNKS, heads=16, kv_heads=4, dim=128, block_size=BLOCK_SIZE, dtype=dtype, device="cuda"
    )
    check(case, params)


@pytest.mark.parametrize("block_size", [32, 64])
def test_other_block_sizes(block_size: int) -> None:
    case = paged_case(
        DECODING + CHUNKS,
        heads=32,
        kv_heads=8,
        dim=128,
        block_size=block_size,
        dtype=torch.bfloat16,
        device="cuda",
        host=True,
    )
    params = AttentionParams(128**-0.5)
    out = TritonBackend().plan(case.batch, block_size).attend(case.q, case.k_cache, case.v_cache, params)
    torch.testing.assert_close(out.float(), case.reference(params), rtol=2**-7, atol=2**-7)


def test_a_large_batch_in_float32() -> None:
    case = paged_case(
        [(40 + 7 * i, 1) for i in range(200)],
        heads=8,
        kv_heads=2,
        dim=64,
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device="cuda",
    )
    out = TritonBackend().plan(case.batch, BLOCK_SIZE).attend(case.q, case.k_cache, case.v_cache, AttentionParams(0.1))
    torch.testing.assert_close(out, case.reference(AttentionParams(0.1)), rtol=1e-4, atol=1e-4)


def test_a_deterministic_row_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit: alone, in the batch, and in the batch again."""
    lens = DECODING + CHUNKS
    backend = TritonBackend(deterministic=True)
    case = paged_case(
        lens, heads=32, kv_heads=8, dim=128, block_size=BLOCK_SIZE, dtype=torch.bfloat16, device="cuda", host=True
    )
    params = AttentionParams(128**-0.5)
    together = check(case, params, backend)
    assert torch.equal(together, check(case, params, backend))
    starts = case.batch.cu_seqlens_q.tolist()
    for i, (_, new) in enumerate(lens):
        rows = slice(starts[i], starts[i + 1])
        alone = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, new], dtype=torch.int32, device="cuda"),
            seq_lens=case.batch.seq_lens[i : i + 1],
            block_tables=case.batch.block_tables[i : i + 1],
            slot_mapping=case.batch.slot_mapping[rows],
        )
        alone = dataclasses.replace(
            alone, host=HostLengths(alone.cu_seqlens_q.cpu().numpy(), alone.seq_lens.cpu().numpy())
        )
        single = backend.plan(alone, BLOCK_SIZE).attend(case.q[rows], case.k_cache, case.v_cache, params)
        assert torch.equal(single, together[rows]), lens[i]


def test_blocks_beyond_two_gigabytes() -> None:
    """Offsets of 32 bits would wrap: 2**31 numbers lie between the sequence's blocks."""
    block_numbers = BLOCK_SIZE * 8 * 128
    num_blocks = 2**31 // block_numbers + 2
    k_cache = torch.empty((num_blocks, BLOCK_SIZE, 8, 128), dtype=torch.float8_e4m3fn, device="cuda")
    v_cache = torch.empty_like(k_cache)
    table = torch.tensor([[0, num_blocks - 1]], dtype=torch.int32, device="cuda")
    small = torch.randn((2, 2, BLOCK_SIZE, 8, 128), device="cuda").to(k_cache.dtype)
    for cache, blocks in zip((k_cache, v_cache), small, strict=True):
        cache.view(torch.uint8)[table[0].long()] = blocks.view(torch.uint8)
    batch = AttentionBatch(
        cu_seqlens_q=torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor([2 * BLOCK_SIZE], dtype=torch.int32, device="cuda"),
        block_tables=table,
        slot_mapping=torch.tensor([-1], device="cuda"),
    )
    q = torch.randn((1, 32, 128), device="cuda").bfloat16()
    params = AttentionParams(128**-0.5)
    out = TritonBackend().plan(batch, BLOCK_SIZE).attend(q, k_cache, v_cache, params)
    near = dataclasses.replace(batch, block_tables=torch.tensor([[0, 1]], dtype=torch.int32, device="cuda"))
    assert torch.equal(out, TritonBackend().plan(near, BLOCK_SIZE).attend(q, *small, params))


def test_decoding_in_a_cuda_graph() -> None:
    """Captured once, replayed after the sequences have grown: the grid covers the longest that the table allows."""
    case = paged_case(
        [(2000, 1), (900, 1)], heads=32, kv_heads=8, dim=128, block_size=BLOCK_SIZE, dtype=torch.bfloat16, device="cuda"
    )
    params = AttentionParams(128**-0.5)
    grown = case.batch.seq_lens.clone()
    case.batch.seq_lens.copy_(torch.tensor([1000, 10]))

    def attend() -> Tensor:
        plan = TritonBackend().plan(case.batch, BLOCK_SIZE)
        return plan.attend(case.q, case.k_cache, case.v_cache, params)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for lens in (case.batch.seq_lens.clone(), grown):
        case.batch.seq_lens.copy_(lens)
        graph.replay()
        torch.testing.assert_close(out.float(), case.reference(params), rtol=2**-7, atol=2**-7)
