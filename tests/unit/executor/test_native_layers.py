"""All layers in one native call give the bits of the same kernels called one by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagoda.executor.batch import StepInputs
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.models.decoder import Decoder
from pagoda.executor.runner import Runner, load_runner

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}
# Biases; norms of heads; norms behind layers, two kinds of rope, windows, gelu, soft caps.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3"},
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", "sliding_window": 20, "sliding_window_pattern": 2},
    "Gemma2ForCausalLM": {"model_type": "gemma2", "sliding_window": 20},
}
BLOCK_SIZE = 16


def steps() -> list[StepInputs]:
    """Two prompts at once, then one token of each beside a chunk of a third."""
    return [inputs([(0, 0, 70), (1, 0, 9)]), inputs([(0, 70, 71), (1, 9, 10), (2, 0, 33)])]


def inputs(sequences: list[tuple[int, int, int]]) -> StepInputs:
    """sequences: (which, first token, behind the last); 8 blocks each."""
    tables = np.array([np.arange(8) + 8 * which for which, _, _ in sequences], np.int32)
    positions = [np.arange(first, last) for _, first, last in sequences]
    slots = [
        table[each // BLOCK_SIZE] * BLOCK_SIZE + each % BLOCK_SIZE
        for table, each in zip(tables, positions, strict=True)
    ]
    lengths = [last - first for _, first, last in sequences]
    joined = np.concatenate(positions)
    return StepInputs(
        token_ids=(7 * joined % 200).astype(np.int32),
        positions=joined,
        slot_mapping=np.concatenate(slots).astype(np.int64),
        cu_seqlens_q=np.cumsum([0, *lengths]).astype(np.int32),
        seq_lens=np.array([last for _, _, last in sequences], np.int32),
        block_tables=tables,
        rows=np.array([which for which, _, _ in sequences]),
        sample_rows=np.empty(0, np.int64),
        sample_tokens=np.empty(0, np.int64),
    )


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "quantization": "int8"},
        {"dtype": "float32", "kv_cache_dtype": "int8"},
        {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    ],
    ids=["float32", "bfloat16", "int8", "float32-int8-cache", "bfloat16-int8-cache"],
)
@torch.inference_mode()
def test_as_one_by_one(architecture: str, options: dict[str, str], tmp_path: Path) -> None:
    runner = native_runner(architecture, options, tmp_path)
    model = runner.model
    together = [runner.forward(step) for step in steps()]
    decoder = Decoder(model.decoder.config, model.decoder.weights, model.max_model_len, model.kernels.elementwise)
    runner.model = replace(model, decoder=decoder)
    one_by_one = [runner.forward(step) for step in steps()]
    assert all(torch.equal(*pair) for pair in zip(together, one_by_one, strict=True))
    assert not torch.equal(together[0][0], together[0][1])


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("architecture", FAMILIES)
@torch.inference_mode()
def test_wanted_tokens_have_the_bits_they_have_among_all(architecture: str, is_native: bool, tmp_path: Path) -> None:
    runner = native_runner(architecture, {"dtype": "bfloat16"}, tmp_path)
    model = runner.model
    if not is_native:
        decoder = Decoder(model.decoder.config, model.decoder.weights, model.max_model_len, model.kernels.elementwise)
        runner.model = replace(model, decoder=decoder)
    first, second = steps()
    expected = [runner.forward(first), runner.forward(second)]
    for tokens in ([], [0], [78], [0, 1, 69, 78], list(range(79))):
        wanted = np.array(tokens, np.int64)
        second_wanted = wanted[wanted < 35]
        for k_cache, v_cache in runner._kv:
            k_cache.fill_(math.nan)
            v_cache.fill_(math.nan)
        assert torch.equal(runner.forward(first, wanted), expected[0][wanted])
        assert torch.equal(runner.forward(second, second_wanted), expected[1][second_wanted])


def native_runner(architecture: str, options: dict[str, str], tmp_path: Path) -> Runner:
    """Skips where there are no native layers."""
    config = SIZES | FAMILIES[architecture] | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    runner = load_runner(
        ExecutorOptions(
            model=str(tmp_path),
            load_format="dummy",
            device="cpu",
            threads=2,
            block_size=BLOCK_SIZE,
            max_num_seqs=4,
            num_gpu_blocks_override=32,
            **options,
        )
    )
    if runner.model.kernels.layers is None:
        pytest.skip("this processor has no instructions for bfloat16")
    return runner
