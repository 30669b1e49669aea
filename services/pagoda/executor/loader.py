"""From a checkpoint folder to a decoder that can run."""

from __future__ import annotations

import io
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from pagoda.executor.checkpoint import Checkpoint, Shape, fingerprint
from pagoda.executor.kernels import Kernels, select_kernels
from pagoda.executor.machine import available_bytes, within_memory
from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import Decoder
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.ranks import ONE_RANK, Ranks, share_of
from pagoda.executor.models.weights import EMBEDDING, ReadTensor, build_weights, expected_shapes, is_ignored

logger = logging.getLogger(__name__)

# Of a linear layer's weight, with its share of the scales.
_QUANTIZED_BITS = {"int8": 8.0, "int4": 4.5}
_SMALLER = "take a smaller model, or a smaller --dtype or --quantization"


@dataclass(frozen=True)
class Model:
    """A decoder and what its folder says about it."""

    decoder: Decoder
    kernels: Kernels
    fingerprint: str
    eos_token_ids: tuple[int, ...]
    max_model_len: int


def load_model(
    folder: Path,
    *,
    device: torch.device,
    dtype: str = "auto",
    max_model_len: int | None = None,
    dummy: bool = False,
    block_size: int = 16,
    kernels: str = "auto",
    quantization: str = "none",
    ranks: Ranks = ONE_RANK,
) -> Model:
    """Loads the checkpoint in `folder`.

    dtype: "bfloat16", "float16", "float32", or "auto": as config.json says, except that a CPU, which computes float16
    slowly, gets bfloat16 for it
    max_model_len: longest sequence in tokens; None: as config.json says
    dummy: random weights (the same every time) instead of the folder's, of which only config.json must exist
    block_size: of the cache that it will run on
    kernels, quantization: see `select_kernels`
    ranks: who else computes the model; this rank's share of it is loaded

    Raises ValueError, naming file, tensor and option, for what cannot be loaded.
    """
    started = time.perf_counter()
    raw = JsonConfig.read(folder / "config.json")
    config = parse_model_config(raw)
    max_model_len = _check_max_model_len(max_model_len, config)
    torch_dtype = _resolve_dtype(dtype, config, device)
    selected = select_kernels(
        config, device=device, dtype=torch_dtype, block_size=block_size, name=kernels, quantization=quantization
    )
    mine = share_of(config, ranks)
    layers = selected.layers if ranks.size == 1 else None
    shapes = expected_shapes(config)
    if dummy:
        read, identity = _dummy_weights(config, torch_dtype), fingerprint(raw, ["dummy"])
    else:
        checkpoint = Checkpoint(folder)
        checkpoint.check(shapes, lambda name: is_ignored(config, name))
        read, identity = lambda name, shape: checkpoint.tensor(name), fingerprint(raw, checkpoint.description())
    _check_memory(shapes, torch_dtype, quantization, ranks, available_bytes(device))
    with _progress_bar(len(shapes)) as bar, within_memory("the weights", _SMALLER):

        def read_and_count(name: str, shape: Shape) -> Tensor:
            bar.update()
            return read(name, shape)

        weights = build_weights(
            config,
            read_and_count,
            torch_dtype,
            device,
            linear=selected.linear,
            gate_up=selected.gate_up,
            head=selected.head,
            ranks=ranks,
        )
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    logger.info(
        "loaded %s, %.1f M parameters, as %s for %s kernels in %.2f s",
        config.architecture,
        num_parameters / 1e6,
        quantization if quantization != "none" else str(torch_dtype).removeprefix("torch."),
        selected.name,
        time.perf_counter() - started,
    )
    return Model(
        decoder=Decoder(mine, weights, max_model_len, selected.elementwise, layers, ranks),
        kernels=selected,
        fingerprint=identity,
        eos_token_ids=read_eos_token_ids(folder, raw),
        max_model_len=max_model_len,
    )


def read_eos_token_ids(folder: Path, config: JsonConfig) -> tuple[int, ...]:
    """The tokens that end a request: those of generation_config.json, if there is one, then those of config.json."""
    path = folder / "generation_config.json"
    generation = JsonConfig.read(path).token_ids("eos_token_id") if path.exists() else ()
    return tuple(dict.fromkeys(generation + config.token_ids("eos_token_id")))


def _check_max_model_len(max_model_len: int | None, config: ModelConfig) -> int:
    if max_model_len is None:
        return config.max_position
    if not 1 <= max_model_len <= config.max_position:
        raise ValueError(
            f"--max-model-len is {max_model_len}, but this model takes between 1 and {config.max_position} tokens"
        )
    return max_model_len


def _check_memory(
    shapes: Mapping[str, Shape], dtype: torch.dtype, quantization: str, ranks: Ranks, free_bytes: int
) -> None:
    """Raises ValueError when a rank's weights alone are more than what is free: nobody gains by finding out slowly."""
    bits = 0.0
    for name, shape in shapes.items():
        is_quantized = quantization in _QUANTIZED_BITS and len(shape) == 2 and name != EMBEDDING
        bits += math.prod(shape) * (_QUANTIZED_BITS[quantization] if is_quantized else 8 * dtype.itemsize)
    num_bytes = bits / 8 / ranks.size
    if num_bytes > free_bytes:
        raise ValueError(
            f"not enough memory for the weights, which take {num_bytes / 2**30:,.1f} GiB where "
            f"{free_bytes / 2**30:,.1f} GiB are free: {_SMALLER}"
        )


def _resolve_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if config.dtype == "float16" and device.type == "cpu" else config.dtype
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def _dummy_weights(config: ModelConfig, dtype: torch.dtype) -> ReadTensor:
    generator = torch.Generator().manual_seed(0)

    def read(name: str, shape: Shape) -> Tensor:
        if len(shape) == 1:
            # A norm's factors are 1, and biases nearly nothing.
            return torch.full(shape, 0.0 if config.norm_plus_one or name.endswith("bias") else 1.0)
        # Keeps the size of what passes through: uniform numbers of variance 1 / columns.
        bound = math.sqrt(3 / shape[1])
        return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)

    return read


def _progress_bar(num_tensors: int) -> tqdm[NoReturn]:
    """Drawn at once on a terminal; in a log, a line every few seconds once loading has taken long."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=num_tensors,
        desc="loading weights",
        unit="tensor",
        file=sys.stderr if on_terminal else _Lines(),
        delay=0 if on_terminal else 2,
        mininterval=0.1 if on_terminal else 2,
        leave=False,
    )


class _Lines(io.TextIOBase):
    """Standard error for who reads it line by line: each state of the bar is a line of its own."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)
