"""A model shared out to two processes computes what one process computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_process
import torch
from safetensors.torch import load_file, save_file

from pagoda.executor.loader import load_model
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.weights import expected_shapes

TIMEOUT_S = 60
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Biases that every rank has, and biases that one has; stacked tensors; a head of its own, and a tied one; soft caps and
# norms behind layers.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "LlamaForCausalLM": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "Phi3ForCausalLM": {"model_type": "phi3"},
    "Gemma2ForCausalLM": {"model_type": "gemma2", "sliding_window": 4},
}


def model_folder(path: Path, architecture: str, **changes: Any) -> Path:
    config = SIZES | FAMILIES[architecture] | {"architectures": [architecture]} | changes
    (path / "config.json").write_text(json.dumps(config))
    shapes = expected_shapes(parse_model_config(JsonConfig.read(path / "config.json")))
    generator = torch.Generator().manual_seed(0)
    # Biases and norms too.
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("architecture", FAMILIES)
def test_two_processes_compute_what_one_does(architecture: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, architecture)
    expected = rank_process.logits(folder)
    outputs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, rank_process.__file__, str(folder), str(rank), "2", str(tmp_path / "meet"), str(output)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ranks = [load_file(output) for output in outputs]
    for each in ranks:
        for name in ("prompt", "next", "last"):
            torch.testing.assert_close(each[name], expected[name], rtol=1e-4, atol=1e-5)
    # Each keeps its own heads of the cache.
    together = torch.cat([each["keys"] for each in ranks], dim=3)
    torch.testing.assert_close(together, expected["keys"], rtol=1e-4, atol=1e-5)


def test_what_does_not_divide_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "Qwen2ForCausalLM", num_key_value_heads=3)

    class TwoRanks:
        rank, size = 0, 2

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

        all_gather = all_reduce

    with pytest.raises(ValueError, match="num_kv_heads of 3 cannot be shared out evenly to 2 ranks"):
        load_model(folder, device=torch.device("cpu"), kernels="reference", ranks=TwoRanks())
