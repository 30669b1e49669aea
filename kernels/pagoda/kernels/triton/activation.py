"""Gated activations."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Numbers that one program takes.
PROGRAM_WIDTH = 1024


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (SwiGLU, https://arxiv.org/abs/2002.05202); gate_up: [..., 2 * width] contiguous, gate first."""
    return _launch(gate_up, gelu=False)


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh approximation of gelu; gate_up: [..., 2 * width] contiguous, gate first."""
    return _launch(gate_up, gelu=True)


def _launch(gate_up: Tensor, *, gelu: bool) -> Tensor:
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    _gate[out.numel() // width, triton.cdiv(width, PROGRAM_WIDTH)](
        gate_up, out, width, GELU=gelu, COLUMNS=PROGRAM_WIDTH, num_warps=4
    )
    return out


@triton.jit
def _gate(gate_up, out, width, GELU: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS columns of one row; the activation is rounded before it is multiplied, as two operations would."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        # (1 + tanh(x)) / 2 = sigmoid(2 x), with x = sqrt(2 / pi) (gate + 0.044715 gate^3).
        activated = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        activated = gate * tl.sigmoid(gate)
    dtype = out.dtype.element_ty
    tl.store(out + row * width + columns, (activated.to(dtype).to(tl.float32) * up).to(dtype), mask=mask)
