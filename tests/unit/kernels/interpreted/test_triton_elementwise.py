"""Norms, rotary embedding, cache writes and activations against the reference.

Not in bfloat16: the interpreter cuts off where GPUs round.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams
from pagoda.kernels.elementwise import HeadNorm, Rope
from pagoda.kernels.reference import attention as reference_attention
from pagoda.kernels.reference.elementwise import (
    ReferenceElementwise,
    apply_rope,
    gelu_tanh_and_mul,
    rms_norm,
    silu_and_mul,
)
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.elementwise import TritonElementwise
from pagoda.kernels.triton.tuning import tuned_for

DTYPES = [torch.float32, torch.float16]
SLOTS = torch.tensor([9, -1, 30, 4, 17])
BLOCK_SIZE = 8


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_last_bit(out: Tensor, expected: Tensor, units: float = 1.0) -> None:
    """Equal but for a rounding of the last place now and then: sums run in another order."""
    assert out.dtype == expected.dtype
    if out.dtype != torch.float32:
        assert (out == expected).float().mean() > 0.9
    epsilon = max(torch.finfo(expected.dtype).eps, 1e-6)
    torch.testing.assert_close(out.float(), expected.float(), rtol=units * epsilon, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("float_weight", [False, True])
def test_norms(dtype: torch.dtype, float_weight: bool) -> None:
    x, delta = randn(3, 96, dtype=dtype), randn(3, 96, dtype=dtype, seed=1)
    weight = randn(96, dtype=torch.float32 if float_weight else dtype, seed=2)
    assert_last_bit(TritonElementwise().rms_norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5), 2)
    summed, expected_sum = x.clone(), x.clone()
    out = TritonElementwise().add_rms_norm(summed, delta, weight, 1e-5)
    assert_last_bit(out, ReferenceElementwise().add_rms_norm(expected_sum, delta, weight, 1e-5), 2)
    assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(dtype: torch.dtype) -> None:
    gate_up = randn(3, 2 * 1100, dtype=dtype) * 3
    assert_last_bit(TritonElementwise().activate_and_multiply(gate_up, "silu"), silu_and_mul(gate_up), 2)
    assert_last_bit(TritonElementwise().activate_and_multiply(gate_up, "gelu_tanh"), gelu_tanh_and_mul(gate_up), 4)


@pytest.mark.parametrize(("dim", "half"), [(16, 8), (24, 12), (20, 6)])
@pytest.mark.parametrize("norm_dtype", [None, torch.float16, torch.float32])
def test_rotation_and_store(dim: int, half: int, norm_dtype: torch.dtype | None) -> None:
    """In one pass, and as separate operations."""
    dtype, heads, kv_heads = torch.float16, 3, 2
    qkv = randn(5, heads + 2 * kv_heads, dim, dtype=dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    angles = randn(5, half, seed=1) * 3
    rope = Rope(angles.cos(), angles.sin())
    norm = None
    if norm_dtype is not None:
        norm = HeadNorm(randn(dim, dtype=norm_dtype, seed=2), randn(dim, dtype=norm_dtype, seed=3), 1e-5)
        q, k = rms_norm(q, norm.q_weight, norm.eps), rms_norm(k, norm.k_weight, norm.eps)
    expected_q, expected_k = apply_rope(q, *rope), apply_rope(k, *rope)
    expected_caches = torch.zeros(2, 4, BLOCK_SIZE, kv_heads, dim, dtype=dtype)
    reference_attention.store_kv(expected_k, v, *expected_caches, SLOTS)

    caches = torch.zeros_like(expected_caches)
    plan = TritonBackend().plan(batch(), BLOCK_SIZE)
    fused = qkv.clone()
    weights = {"q_norm": norm.q_weight, "k_norm": norm.k_weight, "eps": norm.eps} if norm else {}
    queries = plan.rope_and_store(fused, *rope, *caches, AttentionParams(1.0), **weights)
    # A norm's sum in another order can move a rounding, and the rotation adds two such numbers.
    for new, expected in ((queries, expected_q), (caches, expected_caches)):
        torch.testing.assert_close(new, expected, rtol=2**-10, atol=2**-9)
        assert (new == expected).float().mean() > 0.9
    assert torch.equal(fused[:, heads:], qkv[:, heads:])

    separate, other_caches = qkv.clone(), torch.zeros_like(caches)
    TritonElementwise().norm_and_rotate(separate, kv_heads, rope, norm)
    plan.store(separate[:, heads : heads + kv_heads], separate[:, heads + kv_heads :], *other_caches)
    assert torch.equal(separate[:, :heads], queries)
    assert torch.equal(other_caches, caches)
    assert torch.equal(separate[:, heads + kv_heads :], v)


def test_rotation_alone_is_exact() -> None:
    qkv = randn(5, 7, 16, dtype=torch.float16)
    angles = randn(5, 8, seed=1)
    rope = Rope(angles.cos(), angles.sin())
    expected = qkv.clone()
    ReferenceElementwise().norm_and_rotate(expected, 2, rope, None)
    TritonElementwise().norm_and_rotate(qkv, 2, rope, None)
    assert torch.equal(qkv, expected)


@pytest.mark.parametrize("target", ["sm_90", "sm_80"], ids=["converted", "taken apart"])
def test_float8_store(target: str) -> None:
    """Scaled, bounded, and rounded to the nearest."""
    scale, others = 0.5, 1.75
    k = randn(5, 2, 16) * torch.logspace(-5.0, 4.0, 16)
    # Halfway between two numbers, of which the even one is taken.
    k[0, 0] = torch.tensor([1.0625, 1.1875, -1.3125, 17.0, 19.0, 2**-10, 3 * 2**-10, 432.0] * 2) * scale
    if target == "sm_90":
        # The interpreter's own conversion does not round rightly: numbers that need no rounding, and some too large.
        k = (k.clamp(-448, 448).to(torch.float8_e4m3fn).float() * 4).clamp(-2000, 2000) * scale
        k[k.abs() < 2**-5] = 0.0
        others = 0.25
    caches = torch.zeros(2, 4, BLOCK_SIZE, 2, 16).to(torch.float8_e4m3fn)
    with tuned_for(target):
        TritonBackend().plan(batch(), BLOCK_SIZE).store(k, -k, *caches, scale, others)
    stored = SLOTS >= 0
    for cache, values in zip(caches, (k / scale, -k / others), strict=True):
        expected = torch.zeros(4 * BLOCK_SIZE, 2, 16)
        expected[SLOTS[stored]] = values[stored].clamp(-448, 448).to(torch.float8_e4m3fn).float()
        assert torch.equal(cache.flatten(0, 1).float(), expected)


def batch() -> AttentionBatch:
    """One chunk of five tokens, whose slots are SLOTS."""
    return AttentionBatch(
        cu_seqlens_q=torch.tensor([0, 5], dtype=torch.int32),
        seq_lens=torch.tensor([5], dtype=torch.int32),
        block_tables=torch.zeros((1, 1), dtype=torch.int32),
        slot_mapping=SLOTS,
    )
