"""The wheel holds all that a machine without this repository needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_MODELS_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_code_of_all_roots_and_what_it_reads(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {
        "pagoda/cli/main.py",
        "pagoda/kernels/attention.py",
        "pagoda/v1/step_pb2.py",
        "pagoda/v1/descriptors.binpb",
        "pagoda/gateway/envoy.yaml.j2",
        "pagoda/gateway/response.lua",
    } <= names
    assert "pagoda/__init__.py" not in names


@pytest.mark.parametrize("model", ["chat", "draft"])
def test_bundled_models(wheel: zipfile.ZipFile, model: str) -> None:
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert {f"pagoda/bundled/{model}/{name}" for name in files} <= set(wheel.namelist())


def test_bundled_models_are_small(wheel: zipfile.ZipFile) -> None:
    sizes = [each.file_size for each in wheel.infolist() if each.filename.startswith("pagoda/bundled/")]
    assert sum(sizes) <= MAX_MODELS_BYTES
