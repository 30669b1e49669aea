"""Rotary position embeddings: their options in config.json, and the table of cosines and sines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pagoda.executor.models.json_config import JsonConfig

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
_KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",  # its name in the first Phi-3 checkpoints
}


@dataclass(frozen=True)
class RopeConfig:
    """One rotary embedding. Fields below `dim` matter to the kinds named beside them."""

    theta: float
    """Base of the geometric series of frequencies."""

    dim: int
    """Leading dimensions of a head that rotate; even."""

    kind: RopeKind = "default"

    factor: float = 1.0
    """linear, llama3, yarn: how many times longer than trained."""

    original_max_position: int = 0
    """llama3, yarn, longrope: trained context, in tokens."""

    attention_factor: float = 1.0
    """yarn, longrope: scale of cosines and sines."""

    low_freq_factor: float = 1.0
    """llama3."""

    high_freq_factor: float = 4.0
    """llama3."""

    beta_fast: float = 32.0
    """yarn: rotations within the trained context from which a dimension is extrapolated."""

    beta_slow: float = 1.0
    """yarn: rotations below which it is interpolated."""

    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""

    short_factors: tuple[float, ...] = ()
    """longrope: factors of the periods [dim / 2] within the trained context."""

    long_factors: tuple[float, ...] = ()
    """longrope: factors beyond it."""


def parse_rope(config: JsonConfig, options: JsonConfig, head_dim: int, theta: float) -> RopeConfig:
    """One rotary embedding.

    config: all of config.json
    options: its `rope_parameters` (transformers 5) or `rope_scaling` (transformers 4) for the layer in question
    theta: the base, where options have none

    Raises ValueError for a kind that is not supported and for missing or malformed values.
    """
    kind_name = options.text("rope_type", options.text("type", "default"))
    if kind_name == "yarn" and "short_factor" in options:
        kind_name = "longrope"  # likewise
    if kind_name not in _KINDS:
        raise ValueError(f"{options.source}: rope type {kind_name!r} is not supported; supported: {', '.join(_KINDS)}")
    kind = _KINDS[kind_name]
    partial = options.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = int(head_dim * partial)
    theta = options.number("rope_theta", theta)
    if dim < 2 or dim % 2:
        raise ValueError(f"{options.source}: {dim} rotary dimensions of {head_dim}; they must be even and at least 2")
    max_position = config.integer("max_position_embeddings")
    # A value beside the rope parameters wins over one inside (Phi-3).
    inner = options.integer("original_max_position_embeddings", max_position)
    original = config.integer("original_max_position_embeddings", inner)

    if kind == "linear":
        return RopeConfig(theta, dim, kind, factor=options.number("factor"))
    if kind == "llama3":
        return RopeConfig(
            theta,
            dim,
            kind,
            factor=options.number("factor"),
            original_max_position=original,
            low_freq_factor=options.number("low_freq_factor"),
            high_freq_factor=options.number("high_freq_factor"),
        )
    if kind == "yarn":
        factor = options.number("factor", max_position / original)
        return RopeConfig(
            theta,
            dim,
            kind,
            factor=factor,
            original_max_position=original,
            attention_factor=options.number("attention_factor", _yarn_attention_factor(options, factor)),
            beta_fast=options.number("beta_fast", 32.0),
            beta_slow=options.number("beta_slow", 1.0),
            truncate=options.flag("truncate", True),
        )
    if kind == "longrope":
        factor = options.number("factor", max_position / original)
        short, long = options.numbers("short_factor"), options.numbers("long_factor")
        for key, factors in (("short_factor", short), ("long_factor", long)):
            if len(factors) != dim // 2:
                raise options.wrong(key, f"a list of {dim // 2} numbers (half the rotary dimensions)")
        default_scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return RopeConfig(
            theta,
            dim,
            kind,
            original_max_position=original,
            attention_factor=options.number("attention_factor", default_scale),
            short_factors=short,
            long_factors=long,
        )
    return RopeConfig(theta, dim)


def rope_table(rope: RopeConfig, max_model_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each [max_model_len, rope.dim / 2] float32.

    longrope has two sets of frequencies. One set serves the whole life of the model, chosen by whether
    max_model_len exceeds the trained context: cached keys stay valid when a sequence grows, and a prefix can be
    shared by short and long requests. (transformers chooses anew in each forward pass.)
    """
    angles = torch.outer(torch.arange(max_model_len, dtype=torch.float32), inverse_frequencies(rope, max_model_len))
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def inverse_frequencies(rope: RopeConfig, max_model_len: int) -> Tensor:
    """Angle per position of each pair of dimensions, [rope.dim / 2] float32."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    periods = rope.theta**exponents
    if rope.kind == "linear":
        return 1.0 / periods / rope.factor
    if rope.kind == "llama3":
        return _llama3(1.0 / periods, rope)
    if rope.kind == "yarn":
        return _yarn(1.0 / periods, rope)
    if rope.kind == "longrope":
        is_long = max_model_len > rope.original_max_position
        return 1.0 / (torch.tensor(rope.long_factors if is_long else rope.short_factors) * periods)
    return 1.0 / periods


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3.1 (https://arxiv.org/abs/2407.21783): slow dimensions are interpolated, fast ones kept, those in
    between blended by how many turns they make within the trained context."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(frequencies / rope.factor, frequencies, keep.clamp(0, 1))


def _yarn(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071): a linear ramp over dimensions, from extrapolation to interpolation."""

    def dimension(turns: float) -> float:
        """The dimension pair that makes this many turns within the trained context."""
        return rope.dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    # A ramp of no width is a step.
    width = high - low if high != low else 0.001
    interpolate = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return torch.lerp(frequencies, frequencies / rope.factor, interpolate)


def _yarn_attention_factor(options: JsonConfig, factor: float) -> float:
    """The temperature of the YaRN paper; `mscale` and `mscale_all_dim` are DeepSeek's generalization of it."""

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "mscale" in options and "mscale_all_dim" in options:
        return scale(options.number("mscale")) / scale(options.number("mscale_all_dim"))
    return scale(1.0)
