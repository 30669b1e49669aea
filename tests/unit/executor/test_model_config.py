"""config.json in its spellings: of transformers 4 and 5, with nulls, defaults and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig

BASE: dict[str, Any] = {
    "model_type": "x",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def parse(architecture: str, **values: Any) -> ModelConfig:
    return parse_model_config(JsonConfig(BASE | {"architectures": [architecture]} | values, "config.json"))


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.sliding_window for layer in config.layers]


def test_rope_of_transformers_4_and_5() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = parse("LlamaForCausalLM", rope_theta=5e5, rope_scaling=scaling | {"type": "llama3"})
    new = parse("LlamaForCausalLM", rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5})
    assert old == new
    assert old.layers[0].rope.theta == 5e5
    assert old.layers[0].rope.original_max_position == 64


def test_gemma3_rope_of_transformers_4_and_5() -> None:
    common = {"sliding_window": 32, "head_dim": 16}
    old = parse(
        "Gemma3ForCausalLM",
        **common,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=3,
    )
    new = parse(
        "Gemma3ForCausalLM",
        **common,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    )
    assert old == new
    assert windows(old) == [32, 32, None] * 2
    assert [layer.rope.theta for layer in old.layers] == [1e4, 1e4, 1e6] * 2
    assert [layer.rope.kind for layer in old.layers] == ["default", "default", "linear"] * 2


def test_phi3_longrope_in_its_old_names() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = parse(
        "Phi3ForCausalLM", rope_scaling=factors | {"type": "su"}, original_max_position_embeddings=128, sliding_window=9
    )
    rope = config.layers[0].rope
    assert (rope.kind, rope.original_max_position, rope.long_factors) == ("longrope", 128, (2.0,) * 8)
    assert windows(config) == [9] * 6
    with pytest.raises(ValueError, match="short_factor must be a list of 8 numbers"):
        parse("Phi3ForCausalLM", rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})


def test_sliding_windows() -> None:
    assert windows(parse("MistralForCausalLM", sliding_window=100)) == [100] * 6
    assert windows(parse("MistralForCausalLM", sliding_window=None)) == [None] * 6
    assert windows(parse("LlamaForCausalLM", sliding_window=100)) == [None] * 6
    assert windows(parse("Qwen2ForCausalLM", sliding_window=100, max_window_layers=2)) == [None] * 6
    assert windows(parse("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=100, max_window_layers=4)) == [
        *[None] * 4,
        *[100] * 2,
    ]
    assert windows(parse("Gemma2ForCausalLM")) == [4096, None] * 3


def test_biases_and_norms() -> None:
    def options(architecture: str, **values: Any) -> tuple[bool, ...]:
        config = parse(architecture, **values)
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.norm_plus_one

    assert options("LlamaForCausalLM") == (False, False, False, False, False)
    assert options("LlamaForCausalLM", attention_bias=True, mlp_bias=True) == (True, True, True, False, False)
    assert options("Qwen2ForCausalLM") == (True, False, False, False, False)
    assert options("Qwen3ForCausalLM") == (False, False, False, True, False)
    assert options("Gemma3ForCausalLM") == (False, False, False, True, True)


def test_gemma2_defaults_give_way_to_null() -> None:
    assert parse("Gemma2ForCausalLM").attention_soft_cap == 50.0
    config = parse("Gemma2ForCausalLM", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert config.attention_soft_cap is config.logit_soft_cap is None
    assert config.embedding_scale == 8.0
    assert config.attention_scale == 256**-0.5
    assert config.tied_embeddings


def test_gemma_gelu_is_the_tanh_approximation() -> None:
    assert parse("GemmaForCausalLM", hidden_act="gelu").activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM is not supported; supported: Llama"),
        ({"architectures": None}, "architecture none is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantized checkpoints are not supported"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' is not supported; supported: default",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size must be an integer between 1 and 2147483647, not 'many'"),
        ({"hidden_size": 10**30}, "hidden_size must be an integer between 1 and 2147483647, not 1000"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, not 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, not nan"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ({"head_dim": 15}, "15 rotary dimensions of 15; they must be even"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("LlamaForCausalLM", **values)
