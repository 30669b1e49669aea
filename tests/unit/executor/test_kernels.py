"""Which kernels are chosen, and what a model computed with each of them says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.bundled import CHAT_MODEL
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.description import Description
from pagoda.executor.kernels import Kernels, select_kernels
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.runner import Runner, load_runner

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
        ({"name": "triton"}, "--kernels is triton, but the device is cpu, .* set TRITON_INTERPRET=1"),
        ({"name": "triton", "quantization": "int8", "device": torch.device("cuda")}, "needs --kernels cpu"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(**options)


def test_a_gpu_gets_the_kernels_in_triton() -> None:
    selected = select(device=torch.device("cuda"))
    assert (selected.name, selected.attention.name) == ("triton", "triton")
    assert selected.sample is not None


def test_the_interpreter_of_triton_takes_what_it_computes_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select(name="triton", dtype=torch.float16).name == "triton"
    with pytest.raises(ValueError, match="computes bfloat16 wrongly: use --dtype float32"):
        select(name="triton")


def test_without_triton_torch_does_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert select(device=torch.device("cuda")).name == "reference"
    assert "triton is not installed" in caplog.text


def test_a_cpu_does_not_load_triton() -> None:
    code = (
        "import sys, torch; from pagoda.executor.config import ExecutorOptions; "
        "from pagoda.executor.runner import load_runner; from pagoda.bundled import CHAT_MODEL; "
        "load_runner(ExecutorOptions(model=str(CHAT_MODEL), device='cpu', max_num_seqs=1)).warm_up(); "
        "sys.exit('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


def test_types_of_the_cache() -> None:
    for name in ("cpu", "reference"):
        assert select(name=name).cache_dtype("auto", torch.bfloat16) == torch.bfloat16
        assert select(name=name).cache_dtype("int8", torch.bfloat16) == torch.int8
    triton = replace(select(name="reference"), name="triton", can_cache_int8=False)
    assert triton.cache_dtype("auto", torch.float16) == torch.float16
    with pytest.raises(ValueError, match=r"--kv-cache-dtype int8 needs --kernels cpu or reference, .* are triton"):
        triton.cache_dtype("int8", torch.float16)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_a_cache_in_int8_holds_more_tokens(kernels: str) -> None:
    def runner(kv_cache_dtype: str) -> Runner:
        return load_runner(
            ExecutorOptions(
                model=str(CHAT_MODEL),
                device="cpu",
                kernels=kernels,
                kv_cache_dtype=kv_cache_dtype,
                kv_cache_memory_bytes=4 << 20,
                max_num_seqs=64,
            )
        )

    whole, small = runner("auto"), runner("int8")
    assert small.layout.num_blocks > 1.8 * whole.layout.num_blocks
    description = Description(ExecutorOptions(), small, None).registration()
    assert description.kv_layout.dtype == "int8"
    assert description.model.dtype == "bfloat16"


def test_quantized_weights_are_smaller() -> None:
    whole = num_bytes(CHAT_MODEL)
    assert num_bytes(CHAT_MODEL, quantization="int8") < 0.6 * whole
    assert num_bytes(CHAT_MODEL, quantization="int4") < 0.35 * whole
