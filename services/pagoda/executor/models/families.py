"""The supported families: how each one's config.json is read, and what its weights are called.

To add a family that the generic decoder can run, describe it in `FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda.executor.models.config import LayerConfig, ModelConfig
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.rope import RopeConfig, parse_rope
from pagoda.kernels.elementwise import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_DTYPES = ("bfloat16", "float16", "float32")


def _never(config: JsonConfig, layer: int) -> bool:
    return False


def _always(config: JsonConfig, layer: int) -> bool:
    return True


def _qwen(config: JsonConfig, layer: int) -> bool:
    return config.flag("use_sliding_window") and layer >= config.integer("max_window_layers", 28)


def _every_other(config: JsonConfig, layer: int) -> bool:
    return layer % 2 == 0


def _all_but_every_nth(config: JsonConfig, layer: int) -> bool:
    return (layer + 1) % config.integer("sliding_window_pattern", 6) != 0


@dataclass(frozen=True)
class WeightNames:
    """Names in the checkpoint of one layer's tensors, relative to `model.layers.{i}.` and without `.weight`.

    A tuple of several is one matrix here, built by stacking their rows.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    attention_norm: str = "input_layernorm"
    attention_out_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_out_norm: str = ""


_SANDWICH = WeightNames(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)


@dataclass(frozen=True)
class Family:
    """How one architecture differs from Llama. None: as config.json says."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What config.json means where it leaves a key out (`null` is not left out)."""

    slides: Callable[[JsonConfig, int], bool] = _never
    """Whether a layer attends to a window, where config.json has no `layer_types`."""

    has_layer_types: bool = False
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    gemma: bool = False
    """Norm weights are stored minus 1, and embeddings are scaled by sqrt(hidden_size)."""

    soft_caps: bool = False
    """Attention scores are capped by `attn_logit_softcapping`."""

    names: WeightNames = field(default_factory=WeightNames)


_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(mlp_bias=None),
    "MistralForCausalLM": Family(
        defaults={"num_key_value_heads": 8, "sliding_window": 4096}, qkv_bias=False, o_bias=False, slides=_always
    ),
    "Qwen2ForCausalLM": Family(
        defaults={"sliding_window": 4096}, qkv_bias=True, o_bias=False, slides=_qwen, has_layer_types=True
    ),
    "Qwen3ForCausalLM": Family(
        defaults={"sliding_window": 4096, "head_dim": 128}, qk_norm=True, slides=_qwen, has_layer_types=True
    ),
    "GemmaForCausalLM": Family(defaults=_GEMMA_DEFAULTS, gemma=True),
    "Gemma2ForCausalLM": Family(
        defaults=_GEMMA2_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        gemma=True,
        soft_caps=True,
        slides=_every_other,
        has_layer_types=True,
        names=_SANDWICH,
    ),
    "Gemma3ForCausalLM": Family(
        defaults=_GEMMA2_DEFAULTS
        | {"max_position_embeddings": 131_072, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0},
        gemma=True,
        qk_norm=True,
        slides=_all_but_every_nth,
        has_layer_types=True,
        names=_SANDWICH,
    ),
    "Phi3ForCausalLM": Family(
        defaults={"original_max_position_embeddings": 4096},
        qkv_bias=False,
        o_bias=False,
        slides=_always,
        names=WeightNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
    ),
}


def parse_model_config(config: JsonConfig) -> ModelConfig:
    """A Hugging Face config.json as a ModelConfig.

    Raises ValueError when it is malformed, or asks for what is not supported.
    """
    architecture = _supported_architecture(config)
    family = FAMILIES[architecture]
    config = config.with_defaults(family.defaults)
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    head_dim = config.integer("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(f"{config.source}: {num_heads} attention heads cannot share {num_kv_heads} key/value heads")
    if config.flag("use_bidirectional_attention"):
        raise ValueError(f"{config.source}: bidirectional attention is not supported")
    bias = config.flag("attention_bias")
    return ModelConfig(
        architecture=architecture,
        model_type=config.text("model_type"),
        dtype=_dtype(config),
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=_layers(config, family, head_dim),
        max_position=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        norm_plus_one=family.gemma,
        sandwich_norms=bool(family.names.attention_out_norm),
        qk_norm=family.qk_norm,
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=bias if family.o_bias is None else family.o_bias,
        mlp_bias=config.flag("mlp_bias") if family.mlp_bias is None else family.mlp_bias,
        activation=_activation(config, family),
        attention_scale=config.number("query_pre_attn_scalar", head_dim) ** -0.5,
        attention_soft_cap=config.optional_number("attn_logit_softcapping") if family.soft_caps else None,
        logit_soft_cap=config.optional_number("final_logit_softcapping"),
        embedding_scale=math.sqrt(hidden_size) if family.gemma else 1.0,
        tied_embeddings=config.flag("tie_word_embeddings"),
    )


def _supported_architecture(config: JsonConfig) -> str:
    architectures = config.strings("architectures")
    if "quantization_config" in config:
        raise ValueError(f"{config.source}: quantized checkpoints are not supported; use the unquantized one")
    for architecture in architectures:
        if architecture in FAMILIES:
            return architecture
    named = ", ".join(architectures) or "none"
    raise ValueError(f"{config.source}: architecture {named} is not supported; supported: {', '.join(FAMILIES)}")


def _dtype(config: JsonConfig) -> str:
    dtype = config.text("dtype", config.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"{config.source}: dtype {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
    return dtype


def _activation(config: JsonConfig, family: Family) -> Activation:
    name = config.text("hidden_activation", config.text("hidden_act", "silu"))
    # Gemma's first checkpoints say "gelu" and mean the tanh approximation.
    if family.gemma and name == "gelu":
        name = "gelu_pytorch_tanh"
    if name not in _ACTIVATIONS:
        raise ValueError(f"{config.source}: activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _layers(config: JsonConfig, family: Family, head_dim: int) -> tuple[LayerConfig, ...]:
    num_layers = config.integer("num_hidden_layers")
    layer_types = config.strings("layer_types") if family.has_layer_types else ()
    if layer_types and len(layer_types) != num_layers:
        raise ValueError(f"{config.source}: {len(layer_types)} layer_types for {num_layers} layers")
    if unknown := set(layer_types) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"{config.source}: layer types {', '.join(sorted(unknown))} are not supported")
    layers = []
    for i in range(num_layers):
        slides = layer_types[i] == "sliding_attention" if layer_types else family.slides(config, i)
        window = config.integer("sliding_window") if slides and "sliding_window" in config else None
        layers.append(LayerConfig(_layer_rope(config, head_dim, slides), window))
    return tuple(layers)


def _layer_rope(config: JsonConfig, head_dim: int, slides: bool) -> RopeConfig:
    nothing = JsonConfig({}, config.source)
    theta = config.number("rope_theta", 10_000.0)
    parameters = config.section("rope_parameters")
    # Sliding layers may have a base of their own, which is never scaled (Gemma 3).
    has_local_base = slides and "rope_local_base_freq" in config
    if has_local_base:
        theta = config.number("rope_local_base_freq")
    if parameters is None:
        scaling = None if has_local_base else config.section("rope_scaling")
        return parse_rope(config, scaling or nothing, head_dim, theta)
    if "full_attention" in parameters or "sliding_attention" in parameters:
        parameters = parameters.section("sliding_attention" if slides else "full_attention")
    return parse_rope(config, parameters or nothing, head_dim, theta)
