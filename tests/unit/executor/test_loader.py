"""Loading: single files and shards, what fits and what does not, dtypes, dummy weights, fingerprints, end tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pagoda.executor import loader
from pagoda.executor.loader import Model, load_model
from pagoda.executor.models.families import parse_model_config
from pagoda.executor.models.json_config import JsonConfig
from pagoda.executor.models.linear import DenseLinear
from pagoda.executor.models.weights import expected_shapes

CPU = torch.device("cpu")


def random_weights(folder: Path) -> dict[str, Tensor]:
    shapes = expected_shapes(parse_model_config(JsonConfig.read(folder / "config.json")))
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def load(folder: Path, **options: Any) -> Model:
    return load_model(folder, **{"device": CPU} | options)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_single_file(tiny_model: Path) -> None:
    weights = random_weights(tiny_model)
    save_file(weights, tiny_model / "model.safetensors")
    model = load(tiny_model)
    layer = model.decoder.weights.layers[1]
    assert isinstance(layer.qkv, DenseLinear)
    parts = [weights[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(layer.qkv.weight, torch.cat(parts))
    assert torch.equal(model.decoder.weights.embedding, weights["model.embed_tokens.weight"])
    assert model.decoder.weights.num_bytes == sum(tensor.nbytes for tensor in weights.values())
    assert model.max_model_len == 64


def test_shards(tiny_model: Path) -> None:
    weights = random_weights(tiny_model)
    names = list(weights)
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in names if weight_map[name] == file}, tiny_model / file)
    (tiny_model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load(tiny_model).decoder.weights.embedding, weights["model.embed_tokens.weight"])
    (tiny_model / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*model-1\.safetensors"):
        load(tiny_model)


def test_an_index_that_lies(tiny_model: Path) -> None:
    save_file({"a": torch.zeros(1)}, tiny_model / "x.safetensors")
    index = tiny_model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "x.safetensors"}}))
    with pytest.raises(ValueError, match=r"places tensor b in x\.safetensors, which does not hold it"):
        load(tiny_model)
    index.write_text(json.dumps({"weight_map": {"b": 3}}))
    with pytest.raises(ValueError, match="weight_map must be an object of file names"):
        load(tiny_model)


def test_weights_that_do_not_fit(tiny_model: Path) -> None:
    weights = random_weights(tiny_model)
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(32, 47)
    weights["model.extra"] = torch.zeros(2)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of old checkpoints; harmless
    save_file(weights, tiny_model / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as error:
        load(tiny_model)
    message = str(error.value)
    assert "tensor model.norm.weight [32] is missing" in message
    assert (
        "model.safetensors: tensor model.layers.0.mlp.down_proj.weight has shape [32, 47], expected [32, 48]" in message
    )
    assert "model.safetensors: tensor model.extra [2] is not part of the model" in message
    assert "inv_freq" not in message


def test_a_truncated_file(tiny_model: Path) -> None:
    path = tiny_model / "model.safetensors"
    save_file(random_weights(tiny_model), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a valid safetensors file"):
        load(tiny_model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_no_floats(tiny_model: Path, dtype: torch.dtype) -> None:
    weights = random_weights(tiny_model)
    name = "model.layers.1.self_attn.o_proj.weight"
    save_file(weights | {name: weights[name].to(dtype)}, tiny_model / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor {name} is of (I8|F8_E4M3), not of F64, F32"):
        load(tiny_model)


def test_weights_larger_than_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = expected_shapes(parse_model_config(JsonConfig.read(tiny_model / "config.json")))
    num_bytes = sum(math.prod(shape) for shape in shapes.values()) * 4
    monkeypatch.setattr(loader, "available_bytes", lambda device: num_bytes)
    load(tiny_model, dummy=True)
    monkeypatch.setattr(loader, "available_bytes", lambda device: num_bytes - 1)
    with pytest.raises(ValueError, match=r"not enough memory for the weights, which take .* take a smaller model"):
        load(tiny_model, dummy=True)
    load(tiny_model, dummy=True, dtype="bfloat16")


def test_memory_that_runs_out_while_loading(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(loader, "build_weights", build)
    with pytest.raises(ValueError, match=r"not enough memory for the weights: take a smaller model, .*can't allocate"):
        load(tiny_model, dummy=True)


def test_no_weights_at_all(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="only safetensors checkpoints can be loaded"):
        load(tiny_model)


def test_dtypes(tiny_model: Path) -> None:
    def dtype_of(**options: Any) -> torch.dtype:
        return load(tiny_model, dummy=True, **options).decoder.dtype

    assert dtype_of() == torch.float32
    assert dtype_of(dtype="float16") == torch.float16
    edit_config(tiny_model, dtype="float16")
    assert dtype_of() == torch.bfloat16, "float16 is slow on a CPU"
    edit_config(tiny_model, dtype=None, torch_dtype="bfloat16")
    assert dtype_of() == torch.bfloat16
    edit_config(tiny_model, torch_dtype="int8")
    with pytest.raises(ValueError, match="dtype 'int8' is not supported"):
        dtype_of()


def test_max_model_len(tiny_model: Path) -> None:
    assert load(tiny_model, dummy=True, max_model_len=10).max_model_len == 10
    with pytest.raises(ValueError, match="--max-model-len is 65, but this model takes between 1 and 64 tokens"):
        load(tiny_model, dummy=True, max_model_len=65)


def test_the_fingerprint_tells_models_apart(tiny_model: Path) -> None:
    weights = random_weights(tiny_model)
    save_file(weights, tiny_model / "model.safetensors")
    first = load(tiny_model).fingerprint
    assert load(tiny_model, dtype="bfloat16", max_model_len=9).fingerprint == first
    edit_config(tiny_model, transformers_version="99")
    assert load(tiny_model).fingerprint == first
    edit_config(tiny_model, rms_norm_eps=1e-4)
    second = load(tiny_model).fingerprint
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tiny_model / "model.safetensors")
    third = load(tiny_model).fingerprint
    assert len({first, second, third, load(tiny_model, dummy=True).fingerprint}) == 4


def test_dummy_weights_are_the_same_every_time(tiny_model: Path) -> None:
    first, second = (load(tiny_model, dummy=True).decoder.weights.embedding for _ in range(2))
    assert torch.equal(first, second)
    assert first.std() > 0


def test_end_tokens(tiny_model: Path) -> None:
    assert load(tiny_model, dummy=True).eos_token_ids == (1,)
    (tiny_model / "generation_config.json").write_text('{"eos_token_id": [7, 1]}')
    assert load(tiny_model, dummy=True).eos_token_ids == (7, 1)
    edit_config(tiny_model, eos_token_id=None)
    (tiny_model / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load(tiny_model, dummy=True).eos_token_ids == (5,)
