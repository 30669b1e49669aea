"""A whole decoder on the Triton kernels, prompts and decoding mixed, against the same one in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import Decoder
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.linear import ActivatedLinear, DenseLinear
from pagoda.executor.models.weights import build_weights
from pagoda.kernels.attention import AttentionBackend, AttentionBatch
from pagoda.kernels.elementwise import Elementwise
from pagoda.kernels.reference.attention import ReferenceBackend
from pagoda.kernels.reference.elementwise import ReferenceElementwise
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.elementwise import TritonElementwise

BLOCK_SIZE = 4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "dtype": "float32",
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
# Norms of heads and after attention, windows, gelu, weights in float32.
GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 10000.0,
    "rope_local_base_freq": 1000.0,
}


@pytest.mark.parametrize("family", [LLAMA, GEMMA], ids=lambda family: family["model_type"])
def test_steps_match_plain_torch(family: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SIZES, **family}))
    config = parse_model_config(JsonConfig.read(path))
    expected = run_steps(config, ReferenceBackend(), ReferenceElementwise())
    for hidden, other in zip(run_steps(config, TritonBackend(), TritonElementwise()), expected, strict=True):
        torch.testing.assert_close(hidden, other, atol=1e-4, rtol=1e-4)


def run_steps(config: ModelConfig, attention: AttentionBackend, elementwise: Elementwise) -> list[torch.Tensor]:
    """Hidden states of three steps: a prompt, its second half beside another's first token, and both decoding."""
    generator = torch.Generator().manual_seed(0)
    weights = build_weights(
        config,
        lambda name, shape: torch.randn(shape, generator=generator) * 0.3,
        torch.float32,
        torch.device("cpu"),
        linear=DenseLinear,
        gate_up=lambda weight, bias: ActivatedLinear(DenseLinear(weight, bias), elementwise, config.activation),
        head=DenseLinear,
    )
    decoder = Decoder(config, weights, 64, elementwise)
    cache = torch.full((len(config.layers), 2, 12, BLOCK_SIZE, config.num_kv_heads, config.head_dim), torch.nan)
    kv = [(layer[0], layer[1]) for layer in cache]
    tables = [[7, 2, 5, 0], [3, 9, 1, 11]]
    hidden = []
    for lens in ([(9, 9)], [(14, 5), (1, 1)], [(15, 1), (2, 1)]):
        positions = torch.cat([torch.arange(seq_len - new, seq_len) for seq_len, new in lens])
        rows = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor([new for _, new in lens]))
        table = torch.tensor(tables[: len(lens)], dtype=torch.int32)
        slots = table[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        batch = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, *[new for _, new in lens]]).cumsum(0).int(),
            seq_lens=torch.tensor([seq_len for seq_len, _ in lens], dtype=torch.int32),
            block_tables=table,
            slot_mapping=slots,
        )
        tokens = (positions * 13 + rows * 5) % config.vocab_size
        hidden.append(decoder.forward(tokens, positions, kv, attention.plan(batch, BLOCK_SIZE)))
    return hidden
