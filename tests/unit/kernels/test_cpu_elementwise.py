"""The native small operations against the plain ones, on every instruction level that this processor has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagoda.kernels.cpu.elementwise import CpuElementwise
from pagoda.kernels.cpu.library import LEVELS, best_level, library
from pagoda.kernels.elementwise import Activation, HeadNorm, Rope
from pagoda.kernels.reference.elementwise import ReferenceElementwise

REFERENCE = ReferenceElementwise()


@pytest.fixture(scope="module", params=list(LEVELS)[list(LEVELS).index(best_level()) :])
def native(request: pytest.FixtureRequest) -> CpuElementwise:
    loaded = library(request.param)
    assert loaded, "a C++ compiler is needed"
    return CpuElementwise(loaded)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Sums in another order may round to the neighbouring number."""
    assert ours.dtype == theirs.dtype
    tolerance = 2**-7 if ours.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("weight_dtype", [torch.float32, None], ids=["gemma", "llama"])
@pytest.mark.parametrize("shape", [(1, 896), (3, 24), (70, 640)])
def test_norms(
    native: CpuElementwise, dtype: torch.dtype, shape: tuple[int, int], weight_dtype: torch.dtype | None
) -> None:
    x, delta = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.rand(shape[1]).to(weight_dtype or dtype)
    assert_close(native.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6))
    ours, theirs = x.clone(), x.clone()
    normed = native.add_rms_norm(ours, delta, weight, 1e-6)
    assert_close(normed, REFERENCE.add_rms_norm(theirs, delta, weight, 1e-6))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, x + delta)


@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(("num_kv_heads", "head_dim", "half"), [(1, 64, 32), (2, 80, 10), (3, 256, 128)])
def test_rotation(
    native: CpuElementwise, dtype: torch.dtype, has_norm: bool, num_kv_heads: int, head_dim: int, half: int
) -> None:
    qkv = torch.randn(5, 6 * num_kv_heads, head_dim).to(dtype)
    angles = torch.randn(5, half)
    rope = Rope(angles.cos(), angles.sin())
    weights = torch.rand(2, head_dim).to(dtype)
    norm = HeadNorm(weights[0], weights[1], 1e-6) if has_norm else None
    ours, theirs = qkv.clone(), qkv.clone()
    native.norm_and_rotate(ours, num_kv_heads, rope, norm)
    REFERENCE.norm_and_rotate(theirs, num_kv_heads, rope, norm)
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours[:, -num_kv_heads:], qkv[:, -num_kv_heads:])
    assert not torch.equal(ours[:, :-num_kv_heads], qkv[:, :-num_kv_heads])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1, 4864), (7, 20), (40, 1024)])
def test_activations(
    native: CpuElementwise, dtype: torch.dtype, activation: Activation, shape: tuple[int, int]
) -> None:
    gate_up = (3 * torch.randn(shape[0], 2 * shape[1])).to(dtype)
    gate_up[0, :4] = torch.tensor([100.0, -100.0, 30000.0, -30000.0])
    ours = native.activate_and_multiply(gate_up, activation)
    # In float32, torch's own gelu loses more than ours does.
    exact = gate_up if dtype == torch.bfloat16 else gate_up.double()
    theirs = REFERENCE.activate_and_multiply(exact, activation).to(dtype)
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance / 10)


def test_a_row_does_not_depend_on_the_others(native: CpuElementwise, dtype: torch.dtype) -> None:
    x, weight = torch.randn(100, 896).to(dtype), torch.rand(896).to(dtype)
    together = native.rms_norm(x, weight, 1e-6)
    assert all(torch.equal(native.rms_norm(x[i : i + 1], weight, 1e-6), together[i : i + 1]) for i in (0, 42, 99))
