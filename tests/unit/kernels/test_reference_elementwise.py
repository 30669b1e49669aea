"""Norm, rope and activations against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch

from pagoda.kernels.reference.elementwise import apply_rope, gelu_tanh_and_mul, rms_norm, silu_and_mul

torch.set_num_threads(1)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(weight_dtype: torch.dtype) -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.linspace(-1, 2, 16).to(weight_dtype)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=2**-7)


def test_rope_rotates_pairs_half_a_head_apart_and_passes_the_rest() -> None:
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])
    out = apply_rope(x, angles.cos(), angles.sin())
    for token in range(2):
        for i in range(3):
            a, b, angle = x[token, :, i], x[token, :, i + 3], angles[token, i].item()
            torch.testing.assert_close(out[token, :, i], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(out[token, :, i + 3], b * math.cos(angle) + a * math.sin(angle))
    assert torch.equal(out[..., 6:], x[..., 6:])


def test_gated_activations() -> None:
    gate_up = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    gate, up = gate_up[:, :4].double(), gate_up[:, 4:].double()
    torch.testing.assert_close(silu_and_mul(gate_up).double(), gate / (1 + (-gate).exp()) * up, atol=1e-6, rtol=1e-6)
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    torch.testing.assert_close(gelu_tanh_and_mul(gate_up).double(), gate / 2 * (1 + tanh) * up, atol=1e-6, rtol=1e-6)
