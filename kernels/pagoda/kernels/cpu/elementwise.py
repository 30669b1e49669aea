"""The small operations in C++ (src/elementwise.cpp), for bfloat16 and float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pagoda.kernels.cpu.library import FLOAT, INT, POINTER, SIZE, declared
from pagoda.kernels.elementwise import Activation, HeadNorm, Rope


class CpuElementwise:
    """See `Elementwise`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm = declared(library.pagoda_rms_norm, [*[POINTER] * 4, SIZE, SIZE, FLOAT, INT, INT, INT])
        self._norm_and_rotate = declared(
            library.pagoda_norm_and_rotate,
            [POINTER, *[SIZE] * 5, POINTER, POINTER, FLOAT, POINTER, POINTER, SIZE, INT, INT, INT],
        )
        self._activate_and_multiply = declared(
            library.pagoda_activate_and_multiply, [POINTER, POINTER, SIZE, SIZE, INT, INT, INT]
        )

    @staticmethod
    def supports(dtype: torch.dtype) -> bool:
        """Whether a model of that dtype can be computed."""
        return dtype in (torch.bfloat16, torch.float32)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        assert delta.is_contiguous()
        return self._norm(x, delta.data_ptr(), weight, eps)

    def norm_and_rotate(self, qkv: Tensor, num_kv_heads: int, rope: Rope, norm: HeadNorm | None) -> None:
        num_rows, num_heads, head_dim = qkv.shape
        cos, sin = rope
        assert cos.is_contiguous()
        assert sin.is_contiguous()
        self._norm_and_rotate(
            qkv.data_ptr(),
            num_rows,
            qkv.stride(0),
            num_heads - 2 * num_kv_heads,
            num_kv_heads,
            head_dim,
            norm and norm.q_weight.data_ptr(),
            norm and norm.k_weight.data_ptr(),
            norm.eps if norm else 0.0,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[1],
            qkv.dtype is torch.bfloat16,
            norm is not None and norm.q_weight.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )

    def activate_and_multiply(self, gate_up: Tensor, activation: Activation) -> Tensor:
        assert gate_up.is_contiguous()
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, width)
        self._activate_and_multiply(
            gate_up.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            activation == "gelu_tanh",
            gate_up.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out

    def _norm(self, x: Tensor, delta: int | None, weight: Tensor, eps: float) -> Tensor:
        assert x.is_contiguous()
        out = torch.empty_like(x)
        self._rms_norm(
            x.data_ptr(),
            delta,
            weight.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            x.shape[1],
            eps,
            x.dtype is torch.bfloat16,
            weight.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out
