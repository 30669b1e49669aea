"""A decoder's layers as one native call, where all of them are native."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import DecoderWeights, KvLayer
from pagoda.executor.models.linear import Linear
from pagoda.kernels.cpu.layers import CpuLayer, CpuLayers, CpuLayerShape
from pagoda.kernels.cpu.linear import CpuLinear


def cpu_layers(
    library: ctypes.CDLL, config: ModelConfig, weights: DecoderWeights, ropes: Sequence[int], kv: Sequence[KvLayer]
) -> CpuLayers:
    """weights: of `CpuLinear`s; ropes: which of a step's ropes each layer takes."""
    layers = [
        CpuLayer(
            qkv=_native(layer.qkv),
            o=_native(layer.o),
            gate_up=_native(layer.gate_up),
            down=_native(layer.down),
            attention_out_norm=layer.attention_out_norm,
            mlp_norm=layer.mlp_norm,
            mlp_out_norm=layer.mlp_out_norm,
            next_norm=next_norm,
            head_norm=layer.head_norm(config.norm_eps),
            attention=config.attention(i),
            rope=rope,
        )
        for i, (layer, rope, next_norm) in enumerate(zip(weights.layers, ropes, weights.next_norms, strict=True))
    ]
    shape = CpuLayerShape(
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        weights.embedding.dtype,
        config.norm_eps,
    )
    return CpuLayers(library, shape, layers, kv)


def _native(linear: Linear) -> CpuLinear:
    assert isinstance(linear, CpuLinear)
    return linear
