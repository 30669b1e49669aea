"""Which folder a model's name stands for: the bundled model, a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from pagoda.bundled import CHAT_MODEL
from pagoda.errors import NotFoundError, UnavailableError

BUNDLED_NAME = "pagoda"

# Weights only as safetensors: a pickle could run code.
_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str | None) -> Path:
    """The checkpoint folder of `model`: None is the bundled model; a hub id is downloaded unless it is cached.

    Raises NotFoundError or UnavailableError, whose messages say what to do.
    """
    if model is None:
        folder = CHAT_MODEL
        if not (folder / "config.json").is_file():
            raise NotFoundError(f"the bundled model is missing from {folder}; name a model, or reinstall pagoda")
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NotFoundError(f"{folder} is not a checkpoint: it has no config.json")
        return folder.resolve()
    if folder.is_file() or not _HUB_ID.fullmatch(model):
        raise NotFoundError(
            f"{model!r} is neither a checkpoint folder nor a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'"
        )
    return _download(model)


def served_name(model: str | None) -> str:
    """What clients call `model` unless they are told otherwise."""
    return BUNDLED_NAME if model is None else model


def _download(model: str) -> Path:
    """The snapshot of a hub repository, from the cache where it is complete there. Shows a progress bar."""
    # Half a second to import, for those who download only.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise NotFoundError(
            f"the hub wants its conditions accepted before {model!r} is downloaded: "
            f"open https://huggingface.co/{model}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"neither this machine nor the hub has a model {model!r}; check the name, or set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UnavailableError(
            f"{model!r} is not on this machine and the Hugging Face hub cannot be reached; "
            "give a checkpoint folder, go online once, or leave the model out to run the bundled one"
        ) from error
