"""All layers of a decoder in one native call (src/layers.cpp), so that a step of small matrices is not Python's time.

Does what calling the linear layers, `CpuElementwise` and `CpuBackend` one by one does, to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda.kernels.attention import AttentionParams, AttentionPlan
from pagoda.kernels.cpu.attention import CpuPlan, window_tokens
from pagoda.kernels.cpu.library import FLOAT, INT, POINTER, SIZE, declared
from pagoda.kernels.cpu.linear import CpuLinear
from pagoda.kernels.elementwise import HeadNorm, Rope


@dataclass(frozen=True)
class CpuLayer:
    """One layer's weights; see `LayerWeights` of the decoder. Norm weights are [hidden_size]."""

    qkv: CpuLinear
    o: CpuLinear
    gate_up: CpuLinear
    """With the activation."""

    down: CpuLinear
    attention_out_norm: Tensor | None
    mlp_norm: Tensor
    mlp_out_norm: Tensor | None
    next_norm: Tensor
    """The next layer's first norm; the last layer has the decoder's."""

    head_norm: HeadNorm | None
    attention: AttentionParams
    rope: int
    """Which of the ropes of a step."""


@dataclass(frozen=True)
class CpuLayerShape:
    """What all layers have in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    eps: float


class CpuLayers:
    """The layers over one KV cache. Not thread-safe: steps share scratch memory."""

    def __init__(
        self,
        library: ctypes.CDLL,
        shape: CpuLayerShape,
        layers: Sequence[CpuLayer],
        kv: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """kv: per layer k_cache and v_cache, as in `AttentionPlan`."""
        self._run = declared(library.pagoda_run_layers, [POINTER, POINTER, POINTER])
        self._shape = shape
        self._kept = (layers, kv)
        first = layers[0]
        k_cache, _ = kv[0]
        self._widths = [
            first.qkv.out_features,
            first.o.in_features,
            first.gate_up.out_features,
            first.down.out_features,
        ]
        self._windows = list(dict.fromkeys(layer.attention.sliding_window for layer in layers))
        self._c_shape = _Shape(
            len(layers),
            first.down.out_features,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            k_cache.shape[1],
            shape.eps,
            shape.dtype is torch.bfloat16,
            k_cache.dtype is torch.int8,
            first.mlp_norm.dtype is torch.bfloat16,
            first.head_norm is not None and first.head_norm.q_weight.dtype is torch.bfloat16,
        )
        self._c_layers = (_Layer * len(layers))(
            *(self._layer(layer, *layer_kv) for layer, layer_kv in zip(layers, kv, strict=True))
        )
        self._scratch = torch.empty(0, dtype=shape.dtype)

    def run(
        self, x: Tensor, normed: Tensor, ropes: Sequence[Rope], plan: AttentionPlan, tokens: Tensor | None = None
    ) -> Tensor:
        """x: [T, hidden_size] the residual stream, whose norm is `normed`; both are overwritten
        tokens: [n] int64, strictly ascending: those that go on behind the last layer's attention; all when None

        Returns what `normed` is behind the layers, [n, hidden_size].
        """
        assert isinstance(plan, CpuPlan)
        num_tokens = len(x)
        if tokens is not None:
            assert tokens.dtype is torch.int64
            tokens = tokens.contiguous()
            assert bool((tokens.diff() > 0).all())
        num_kept = num_tokens if tokens is None else len(tokens)
        starts = [0]
        for width in self._widths:
            # Every part begins with a cache line.
            starts.append(starts[-1] + -(-num_tokens * width // 32) * 32)
        if len(self._scratch) < starts[-1]:
            self._scratch = torch.empty(starts[-1], dtype=self._shape.dtype)
        scratch = self._scratch.data_ptr()
        c_ropes = (_Rope * len(ropes))(*(_Rope(cos.data_ptr(), sin.data_ptr(), cos.shape[1]) for cos, sin in ropes))
        shape = self._shape
        layouts = [
            plan.layout(shape.num_heads // shape.num_kv_heads, shape.num_kv_heads, shape.head_dim, window)
            for window in self._windows
        ]
        c_layouts = (_Layout * len(layouts))(*(_Layout(layout.items, layout.sizes) for layout in layouts))
        step = _Step(
            num_tokens,
            _pointer(tokens),
            num_kept,
            ctypes.addressof(c_ropes),
            ctypes.addressof(c_layouts),
            plan.batch.slot_mapping.data_ptr(),
            plan.batch.block_tables.data_ptr(),
            plan.batch.block_tables.stride(0),
            plan.workspace(max(layout.workspace_bytes for layout in layouts)),
            x.data_ptr(),
            normed.data_ptr(),
            *(scratch + start * self._shape.dtype.itemsize for start in starts[:-1]),
            torch.get_num_threads(),
        )
        self._run(ctypes.addressof(self._c_layers), ctypes.addressof(self._c_shape), ctypes.addressof(step))
        return normed[:num_kept]

    def _layer(self, layer: CpuLayer, k_cache: Tensor, v_cache: Tensor) -> _Layer:
        head_norm, attention = layer.head_norm, layer.attention
        return _Layer(
            *(_linear(each) for each in (layer.qkv, layer.o, layer.gate_up, layer.down)),
            _pointer(layer.attention_out_norm),
            _pointer(layer.mlp_norm),
            _pointer(layer.mlp_out_norm),
            _pointer(layer.next_norm),
            _pointer(head_norm and head_norm.q_weight),
            _pointer(head_norm and head_norm.k_weight),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            attention.scale,
            attention.soft_cap or 0.0,
            window_tokens(attention.sliding_window),
            layer.rope,
            self._windows.index(attention.sliding_window),
        )


def _linear(linear: CpuLinear) -> _Linear:
    return _Linear(
        linear.function_pointer, linear.panels_pointer, linear.out_features, linear.in_features, linear.activation_code
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("multiply", "panels")),
        *((name, SIZE) for name in ("out_features", "in_features")),
        ("activation", INT),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
        *(
            (name, POINTER)
            for name in (
                *("attention_out_norm", "mlp_norm", "mlp_out_norm", "next_norm"),
                *("q_norm", "k_norm", "k_cache", "v_cache"),
            )
        ),
        ("scale", FLOAT),
        ("soft_cap", FLOAT),
        *((name, INT) for name in ("window", "rope", "layout")),
    )


class _Shape(ctypes.Structure):
    _fields_ = (
        *(
            (name, SIZE)
            for name in (
                *("num_layers", "hidden_size", "num_heads", "num_kv_heads"),
                *("head_dim", "block_size"),
            )
        ),
        ("eps", FLOAT),
        *((name, INT) for name in ("is_bf16", "is_cache_int8", "is_norm_bf16", "is_head_norm_bf16")),
    )


class _Rope(ctypes.Structure):
    _fields_ = (("cosine", POINTER), ("sine", POINTER), ("half", SIZE))


class _Layout(ctypes.Structure):
    _fields_ = (("items", POINTER), ("sizes", POINTER))


class _Step(ctypes.Structure):
    _fields_ = (
        ("num_tokens", SIZE),
        ("kept_tokens", POINTER),
        ("num_kept", SIZE),
        *((name, POINTER) for name in ("ropes", "layouts", "slot_mapping", "block_tables")),
        ("block_tables_stride", SIZE),
        *(
            (name, POINTER)
            for name in (
                *("attention_workspace", "x", "normed"),
                *("qkv", "attended", "activated", "delta"),
            )
        ),
        ("num_threads", INT),
    )
