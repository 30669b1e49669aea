"""Which kernels an executor computes with, for its device, dtype and shapes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import MakeLayers
from pagoda.executor.models.linear import DenseLinear
from pagoda.executor.models.native import cpu_layers
from pagoda.executor.models.weights import MakeLinear
from pagoda.kernels.attention import AttentionBackend
from pagoda.kernels.cpu.attention import CpuBackend
from pagoda.kernels.cpu.elementwise import CpuElementwise
from pagoda.kernels.cpu.library import best_level, library
from pagoda.kernels.cpu.linear import CpuLinear, Storage
from pagoda.kernels.elementwise import Elementwise
from pagoda.kernels.reference.attention import ReferenceBackend
from pagoda.kernels.reference.elementwise import ReferenceElementwise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One way to compute a model."""

    name: str
    attention: AttentionBackend
    elementwise: Elementwise
    linear: MakeLinear
    head: MakeLinear
    """For the layer from hidden states to logits."""

    layers: MakeLayers | None = None
    """For all layers at once."""


def select_kernels(
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    block_size: int,
    name: str = "auto",
    quantization: str = "none",
) -> Kernels:
    """name: one of `config.KERNELS`; auto takes the fastest that can compute the model here
    quantization: one of `config.QUANTIZATIONS`, of the linear layers' weights

    Raises ValueError, naming the option to change, for what cannot be.
    """
    if name in ("auto", "cpu"):
        obstacle = _obstacle_to_native(config, device, dtype, block_size)
        if obstacle is None:
            return _native(dtype, quantization)
        if name == "cpu":
            raise ValueError(f"--kernels is cpu, but {obstacle}")
        if quantization != "none":
            raise ValueError(f"--quantization {quantization} needs the native kernels, but {obstacle}")
        if device.type == "cpu":
            logger.warning("computing with torch alone, which is slower: %s", obstacle)
    if quantization != "none":
        raise ValueError(f"--quantization {quantization} needs --kernels cpu")
    return Kernels("reference", ReferenceBackend(), ReferenceElementwise(), DenseLinear, DenseLinear)


def _obstacle_to_native(config: ModelConfig, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
    """Why the native kernels cannot compute the model; None: they can."""
    if device.type != "cpu":
        return f"the device is {device.type}"
    if not CpuBackend.supports(dtype=dtype, head_dim=config.head_dim, block_size=block_size):
        return (
            f"the native kernels do not take --dtype {str(dtype).removeprefix('torch.')} with heads of "
            f"{config.head_dim} and --block-size {block_size}"
        )
    if library() is None:
        return "the native kernels cannot be compiled (is g++ or clang++ installed?)"
    return None


def _native(dtype: torch.dtype, quantization: str) -> Kernels:
    loaded = library()
    assert loaded is not None

    def packed(storage: Storage | None, out_dtype: torch.dtype | None = None) -> MakeLinear:
        return lambda weight, bias: CpuLinear(loaded, weight, bias, storage=storage, out_dtype=out_dtype)

    level = best_level()
    if quantization == "int8":
        linear, head = packed("int8"), packed("int8", torch.float32)
    elif quantization == "int4":
        # The head decides between tokens that are nearly equal: 8 bits cost it less than 4 save.
        linear, head = packed("int4"), packed("int8", torch.float32)
    elif dtype == torch.bfloat16 and level != "avx512_bf16":
        # Without instructions for bfloat16, torch's matrix products are the faster ones.
        linear = head = DenseLinear
    else:
        linear, head = packed(None), packed(None, torch.float32)
    layers = None if linear is DenseLinear else partial(cpu_layers, loaded)
    return Kernels(f"cpu ({level})", CpuBackend(), CpuElementwise(loaded), linear, head, layers)
