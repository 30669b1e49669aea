"""Which folder a model's name stands for."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pagoda.bundled import CHAT_MODEL
from pagoda.checkpoint import resolve_model, served_name
from pagoda.errors import NotFoundError, UnavailableError


def test_bundled_model() -> None:
    assert resolve_model(None) == CHAT_MODEL
    assert served_name(None) == "pagoda"


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "some" / "model"
    checkpoint.mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        resolve_model(str(checkpoint))
    (checkpoint / "config.json").write_text("{}")
    assert resolve_model(str(checkpoint)) == checkpoint
    # A folder goes before a hub id of the same name.
    monkeypatch.chdir(tmp_path)
    assert resolve_model("some/model") == checkpoint
    assert served_name("some/model") == "some/model"


@pytest.mark.parametrize("model", ["", "nothing", "/no/such/folder", "a/b/c", "https://huggingface.co/a/b"])
def test_what_is_neither_folder_nor_hub_id(model: str) -> None:
    with pytest.raises(NotFoundError, match="checkpoint"):
        resolve_model(model)


def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(model: str, allow_patterns: list[str]) -> str:
        asked.append(model)
        assert not any(".bin" in pattern or ".pt" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct") == tmp_path
    assert asked == ["Qwen/Qwen2.5-0.5B-Instruct"]


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UnavailableError, match="give a checkpoint folder, go online once, or leave the model out"):
        resolve_model("Qwen/Qwen2.5-0.5B-Instruct")
