"""Which kernels an executor computes with, for its device, dtype and shapes."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import MakeLayers
from pagoda.executor.models.linear import ActivatedLinear, DenseLinear
from pagoda.executor.models.native import cpu_layers
from pagoda.executor.models.weights import MakeLinear
from pagoda.kernels.attention import AttentionBackend
from pagoda.kernels.cpu.attention import CpuBackend
from pagoda.kernels.cpu.elementwise import CpuElementwise
from pagoda.kernels.cpu.head import CpuHead
from pagoda.kernels.cpu.library import best_level, library
from pagoda.kernels.cpu.linear import CpuLinear, Storage
from pagoda.kernels.elementwise import Activation, Elementwise
from pagoda.kernels.reference.attention import ReferenceBackend
from pagoda.kernels.reference.elementwise import ReferenceElementwise
from pagoda.kernels.sampling import SampleTokens

logger = logging.getLogger(__name__)

# The largest in `pagoda.kernels.triton.tuning`.
_MAX_TRITON_HEAD_DIM = 256
# Bytes of a head's weights from which on it is sooner to find the tokens that matter first. Smaller ones stay in the
# processor's cache.
_WORTH_SHORTLISTS = 4 << 20


@dataclass(frozen=True)
class Kernels:
    """One way to compute a model."""

    name: str
    attention: AttentionBackend
    elementwise: Elementwise
    linear: MakeLinear
    gate_up: MakeLinear
    """For the layer from hidden states to the activated ones of the MLP."""

    head: MakeLinear
    """For the layer from hidden states to logits."""

    layers: MakeLayers | None = None
    """For all layers at once."""

    sample: SampleTokens | None = None
    """Where the logits are; None: `executor.sampler`, which brings what it needs to the host."""

    can_cache_int8: bool = True
    """Whether the KV cache may be in int8."""

    def cache_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Of the KV cache. name: one of `config.KV_CACHE_DTYPES`; dtype: the model's

        Raises ValueError, naming the option, for what these kernels cannot do.
        """
        if name == "auto":
            return dtype
        if not self.can_cache_int8:
            raise ValueError(
                f"--kv-cache-dtype {name} needs --kernels cpu or reference, but the kernels are {self.name}"
            )
        return torch.int8


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
    on_cpu = device.type == "cpu"
    if name == "cpu" or (name == "auto" and on_cpu):
        if (obstacle := _obstacle_to_native(config, device, dtype, block_size)) is None:
            return _native(dtype, quantization, config.activation)
        if name == "cpu":
            raise ValueError(f"--kernels is cpu, but {obstacle}")
        if quantization != "none":
            raise ValueError(f"--quantization {quantization} needs the native kernels, but {obstacle}")
        logger.warning("computing with torch alone, which is slower: %s", obstacle)
    if quantization != "none":
        raise ValueError(f"--quantization {quantization} needs --kernels cpu")
    if name == "triton" or (name == "auto" and not on_cpu):
        if (obstacle := _obstacle_to_triton(config, device, dtype)) is None:
            return _triton(config.activation)
        if name == "triton":
            raise ValueError(f"--kernels is triton, but {obstacle}")
        logger.warning("computing with torch alone, which is slower: %s", obstacle)
    elementwise = ReferenceElementwise()
    gate_up = _dense_gate_up(elementwise, config.activation)
    return Kernels("reference", ReferenceBackend(), elementwise, DenseLinear, gate_up, DenseLinear)


def _dense_gate_up(elementwise: Elementwise, activation: Activation) -> MakeLinear:
    return lambda weight, bias: ActivatedLinear(DenseLinear(weight, bias), elementwise, activation)


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


def _native(dtype: torch.dtype, quantization: str, activation: Activation) -> Kernels:
    loaded = library()
    assert loaded is not None

    def packed(
        storage: Storage | None, *, activation: Activation | None = None, out_dtype: torch.dtype | None = None
    ) -> MakeLinear:
        return partial(CpuLinear, loaded, storage=storage, activation=activation, out_dtype=out_dtype)

    def layer(storage: Storage | None) -> tuple[MakeLinear, MakeLinear]:
        return packed(storage), packed(storage, activation=activation)

    elementwise, level = CpuElementwise(loaded), best_level()
    if quantization == "int8":
        (linear, gate_up), head = layer("int8"), packed("int8", out_dtype=torch.float32)
    elif quantization == "int4":
        # The head decides between tokens that are nearly equal: 8 bits cost it less than 4 save.
        (linear, gate_up), head = layer("int4"), packed("int8", out_dtype=torch.float32)
    elif dtype == torch.bfloat16 and level != "avx512_bf16":
        # Without instructions for bfloat16, torch's matrix products are the faster ones.
        linear, gate_up, head = DenseLinear, _dense_gate_up(elementwise, activation), DenseLinear
    else:
        (linear, gate_up), head = layer(None), partial(_dense_head, loaded)
    layers = None if linear is DenseLinear else partial(cpu_layers, loaded)
    return Kernels(f"cpu ({level})", CpuBackend(), elementwise, linear, gate_up, head, layers)


def _dense_head(library: ctypes.CDLL, weight: Tensor, bias: Tensor | None) -> CpuLinear:
    if bias is None and weight.nbytes >= _WORTH_SHORTLISTS:
        return CpuHead(library, weight)
    return CpuLinear(library, weight, bias, out_dtype=torch.float32)


def _obstacle_to_triton(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton's kernels cannot compute the model; None: they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if config.head_dim > _MAX_TRITON_HEAD_DIM:
        return f"its kernels take heads of at most {_MAX_TRITON_HEAD_DIM}, not {config.head_dim}"
    if device.type == "cpu":
        # An interpreter for trying kernels out. Whether it is on, Triton asks once, when it is imported.
        if os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "the device is cpu, where Triton's kernels run in its interpreter only, which is thousands of times "
                "slower: set TRITON_INTERPRET=1 to try them out without a GPU"
            )
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly: use --dtype float32 or float16"
    return None


def _triton(activation: Activation) -> Kernels:
    # Imported only here: it takes a while, and most machines without a GPU do not have it.
    from pagoda.kernels.triton.backend import TritonBackend
    from pagoda.kernels.triton.elementwise import TritonElementwise
    from pagoda.kernels.triton.sampling import sample

    elementwise = TritonElementwise()
    return Kernels(
        "triton",
        TritonBackend(deterministic=True),
        elementwise,
        DenseLinear,
        _dense_gate_up(elementwise, activation),
        DenseLinear,
        sample=sample,
        can_cache_int8=False,
    )
