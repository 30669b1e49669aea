"""The text side of a Hugging Face checkpoint folder: which file says what, and which one wins.

Reads JSON and Jinja files and interprets them; knows nothing of how they are used. A missing optional file is
an empty one; a file that cannot be read as what it should be is a ValueError that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

Json = dict[str, Any]


def read_json_object(path: Path) -> Json:
    """The JSON object in a file, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(value).__name__}.")
    return value


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; FileNotFoundError or ValueError, naming the file, if none is."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. A checkpoint folder needs its fast tokenizer in this file; "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it."
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every defect of the file
        raise ValueError(f"{path} is not a tokenizer file that tokenizers can read: {error}") from error


def with_special_tokens_map(tokenizer_config: Json, special_tokens_map: Json) -> Json:
    """What `tokenizer_config.json` says of tokens, completed from the older `special_tokens_map.json`.

    As in transformers, the map counts only beside a configuration without `added_tokens_decoder`; there it
    wins.
    """
    return tokenizer_config if "added_tokens_decoder" in tokenizer_config else tokenizer_config | special_tokens_map


def special_tokens(tokenizer_config: Json) -> dict[str, AddedToken]:
    """Special tokens by name: `bos_token`, `eos_token`, ..., and any model-specific one."""
    entries = {name: entry for name, entry in tokenizer_config.items() if name.endswith("_token")}
    extra = tokenizer_config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        entries.update(extra)
    named = {name: _special_token(entry) for name, entry in entries.items()}
    return {name: token for name, token in named.items() if token is not None}


def added_tokens(tokenizer_config: Json, special: Mapping[str, AddedToken]) -> list[AddedToken]:
    """Tokens that `tokenizer_config.json` adds to the tokenizer: by ascending id, then those without one.

    Those that the tokenizer already has are among them: adding one again changes only its flags.
    """
    special_contents = {token.content for token in special.values()}
    try:
        by_id = {int(index): entry for index, entry in tokenizer_config.get("added_tokens_decoder", {}).items()}
        tokens = [
            _added_token(entry, special=bool(entry.get("special")) or entry["content"] in special_contents)
            for _, entry in sorted(by_id.items())
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "added_tokens_decoder in tokenizer_config.json must map token ids to objects with a content."
        ) from error
    listed = {token.content for token in tokens}
    unlisted = [*special.values(), *_extra_special_tokens(tokenizer_config)]
    return tokens + [token for token in unlisted if token.content not in listed]


def chat_templates(folder: Path, tokenizer_config: Json) -> dict[str, str]:
    """Chat templates by name; the one for use without tools, and usually with them, is "default".

    Template files win over `tokenizer_config.json`, and that over the older `chat_template.json`.
    """
    templates = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    default = folder / "chat_template.jinja"
    if default.is_file():
        templates["default"] = default.read_text(encoding="utf-8")
    return (
        templates
        or _templates_in(tokenizer_config, folder / "tokenizer_config.json")
        or _templates_in(read_json_object(folder / "chat_template.json"), folder / "chat_template.json")
    )


def token_ids(*values: object) -> frozenset[int]:
    """Every id in values that are each an id, a list of ids, or None, as `eos_token_id` may be."""
    ids: set[int] = set()
    for value in values:
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int):
                ids.add(token_id)
    return frozenset(ids)


def plain(value: Any) -> Any:
    """JSON with every serialized AddedToken replaced by the token's string."""
    if isinstance(value, Mapping):
        if value.get("__type") == "AddedToken" or {"content", "lstrip", "rstrip"} <= value.keys():
            return value["content"]
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _templates_in(config: Json, path: Path) -> dict[str, str]:
    entry = config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        named = entry if isinstance(entry, Mapping) else {item["name"]: item["template"] for item in entry}
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"chat_template in {path} must be a string or a list of objects with name and template."
        ) from error
    return {str(name): str(template) for name, template in named.items()}


def _extra_special_tokens(tokenizer_config: Json) -> Iterable[AddedToken]:
    extra = tokenizer_config.get("extra_special_tokens") or tokenizer_config.get("additional_special_tokens")
    if not isinstance(extra, list):
        return []
    return [token for token in map(_special_token, extra) if token is not None]


def _special_token(entry: object) -> AddedToken | None:
    """A special token from its string or its serialized AddedToken; None for anything else (null, a flag)."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    if isinstance(entry, Mapping) and isinstance(entry.get("content"), str):
        return _added_token(entry, special=True)
    return None


def _added_token(entry: Mapping[str, Any], *, special: bool) -> AddedToken:
    flags = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry}
    return AddedToken(entry["content"], special=special, **flags)
