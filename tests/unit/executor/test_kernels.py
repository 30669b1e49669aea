"""Which kernels are chosen, and what a model computed with each of them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.bundled import CHAT_MODEL
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.kernels import Kernels, select_kernels
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.runner import load_runner

CPU = torch.device("cpu")


def select(**options: Any) -> Kernels:
    config = parse_model_config(JsonConfig.read(CHAT_MODEL / "config.json"))
    return select_kernels(config, **{"device": CPU, "dtype": torch.bfloat16, "block_size": 16} | options)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.executor.kernels.library", lambda: None)


def test_the_native_ones_are_taken_where_they_can_be() -> None:
    assert select().name.startswith("cpu")
    assert select().attention.name == "cpu"
    assert select(name="reference").name == "reference"
    assert select(dtype=torch.float16).name == "reference"
    assert select(block_size=5).name == "reference"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cpu", "dtype": torch.float16}, "--kernels is cpu, but .* --dtype float16"),
        ({"name": "cpu", "device": torch.device("cuda")}, "--kernels is cpu, but the device is cuda"),
        (
            {"quantization": "int8", "block_size": 5},
            "--quantization int8 needs the native kernels, but .*--block-size 5",
        ),
        ({"quantization": "int4", "name": "reference"}, "--quantization int4 needs --kernels cpu"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(**options)


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    no_compiler(monkeypatch)
    assert select().name == "reference"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "g++" in caplog.text
    with pytest.raises(ValueError, match=r"--kernels is cpu, but .*g\+\+"):
        select(name="cpu")


def num_bytes(folder: Path, **options: Any) -> int:
    """Of the linear layers of a loaded model."""
    runner = load_runner(ExecutorOptions(model=str(folder), device="cpu", max_num_seqs=1, **options))
    layer = runner.model.decoder.weights.layers[0]
    return sum(linear.num_bytes for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))


def test_quantized_weights_are_smaller() -> None:
    whole = num_bytes(CHAT_MODEL)
    assert num_bytes(CHAT_MODEL, quantization="int8") < 0.6 * whole
    assert num_bytes(CHAT_MODEL, quantization="int4") < 0.35 * whole
