"""A checkpoint folder must load as transformers loads it, and say clearly what is wrong with it if it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from pagoda.errors import InvalidArgumentError
from pagoda.text import TextTokenizer

SaveFolder = Callable[..., Path]

TEXTS = [
    "the dog",
    " the  dog\n\n",
    "<s>the</s> <think>dog",
    "你好世界 👩‍👩‍👧 e\u0301",
    "it's the dog's café, don't . mind",
    "",
    "<tool><tool> dog <mask>",
]


def token(content: str, *, special: bool = False, **flags: bool) -> dict[str, Any]:
    """A token as `added_tokens_decoder` and old `special_tokens_map.json` files write it."""
    defaults = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special}
    return {"content": content, "special": special, **defaults, **flags}


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", **token("</s>", special=True)},
    "model_max_length": 4096,
    "add_bos_token": True,
    "chat_template": "{{ messages[0].content }}",
}

# Folders whose files differ in where and how they name tokens.
FOLDERS: dict[str, dict[str, Any]] = {
    "only tokenizer.json": {},
    "config": {"tokenizer_config": CONFIG},
    "special_tokens_map": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map": {"bos_token": "<s>", "mask_token": token("<mask>", lstrip=True, normalized=False)},
    },
    "added_tokens_decoder": {
        "tokenizer_config": CONFIG
        | {
            "added_tokens_decoder": {
                "900": token("<tool>", special=True, rstrip=True),
                "901": token("dog"),
                "902": token("</s>"),
            }
        },
        "special_tokens_map": {"bos_token": "ignored"},
    },
    "extra tokens": {"tokenizer_config": CONFIG | {"additional_special_tokens": ["<tool>", "<mask>"]}},
    "split special tokens": {"tokenizer_config": CONFIG | {"split_special_tokens": True}},
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "metaspace", "word_piece"])
def test_agrees_with_transformers(family: str, files: dict[str, Any], save_folder: SaveFolder) -> None:
    folder = save_folder(family, **files)
    ours = TextTokenizer.load(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.token_strings(ids) == theirs.convert_ids_to_tokens(ids)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]
    assert ours.vocab_size == theirs.vocab_size
    assert len(ours) == len(theirs)
    assert ours.special_token_ids >= set(theirs.all_special_ids)
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (
        theirs.bos_token,
        theirs.eos_token,
        theirs.pad_token,
    )


@pytest.mark.parametrize("flags", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_the_post_processor_decides_on_bos_and_eos(flags: dict[str, bool], save_folder: SaveFolder) -> None:
    folder = save_folder("byte_fallback", tokenizer_config=CONFIG | flags)
    ours = TextTokenizer.load(folder)
    assert ours.encode("dog") == AutoTokenizer.from_pretrained(folder).encode("dog")
    assert ours.token_strings(ours.encode("dog"))[0] == "<s>"
    assert "<s>" not in ours.token_strings(ours.encode("dog", add_special_tokens=False))


def test_padding_and_truncation_in_the_file_are_ignored(backends: dict[str, Tokenizer], tmp_path: Path) -> None:
    backend = Tokenizer.from_str(backends["byte_level"].to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the lazy dog")) == "the lazy dog"
    assert [len(ids) for ids in tokenizer.encode_batch(["", "the lazy dog"])] == [
        0,
        len(tokenizer.encode("the lazy dog")),
    ]


def test_the_file_says_which_template_processor_runs(backends: dict[str, Tokenizer], tmp_path: Path) -> None:
    backend = Tokenizer.from_str(backends["byte_level"].to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = TextTokenizer.load(tmp_path).encode("the dog")
    assert ids == AutoTokenizer.from_pretrained(tmp_path).encode("the dog")
    assert (ids[0], ids[-1]) == (0, 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"tokenizer_config": {"eos_token": "</s>"}}, {1}),
        ({"config": {"eos_token_id": 7}}, {7}),
        ({"config": {"text_config": {"eos_token_id": [8]}}}, {8}),
        (
            {
                "tokenizer_config": {"eos_token": "</s>"},
                "config": {"eos_token_id": 7},
                "generation_config": {"eos_token_id": [5, 6]},
            },
            {1, 5, 6, 7},
        ),
        ({"generation_config": {"eos_token_id": None}}, set()),
    ],
)
def test_eos_ids_come_from_every_file(files: dict[str, Any], expected: set[int], save_folder: SaveFolder) -> None:
    assert TextTokenizer.load(save_folder("byte_level", **files)).eos_token_ids == expected


def test_ids_up_to_the_models_vocabulary_are_in_range(save_folder: SaveFolder) -> None:
    tokenizer = TextTokenizer.load(save_folder("byte_level", config={"vocab_size": 1024}))
    assert tokenizer.max_token_id == 1023
    assert tokenizer.decode([1023]) == ""
    assert tokenizer.token_strings([1023]) == [""]
    with pytest.raises(InvalidArgumentError, match="0 to 1023") as raised:
        tokenizer.decode([1024])
    assert raised.value.reason == "TOKEN_ID_OUT_OF_RANGE"


@pytest.mark.parametrize("family", ["byte_level", "word_suffix"])
@pytest.mark.parametrize("bad_id", [-1, 10**6, 2**64])
def test_ids_out_of_range_are_refused(family: str, bad_id: int, loaded: dict[str, TextTokenizer]) -> None:
    with pytest.raises(InvalidArgumentError):
        loaded[family].decode([0, bad_id])
    with pytest.raises(InvalidArgumentError):
        loaded[family].token_strings([bad_id])


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff"])
def test_lone_surrogates_are_refused(text: str, loaded: dict[str, TextTokenizer]) -> None:
    tokenizer = loaded["byte_level"]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(InvalidArgumentError, match=f"character {len(text) - 1} is a lone surrogate") as raised:
            encode(text)
        assert raised.value.reason == "INVALID_UNICODE"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "tokenizer.json")):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[]", '{"model": {"type": "BPE"}}'])
def test_a_corrupt_tokenizer_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]", b"\xff"])
def test_a_corrupt_json_file_is_named(name: str, content: str | bytes, save_folder: SaveFolder) -> None:
    folder = save_folder("byte_level")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=name):
        TextTokenizer.load(folder)


@pytest.mark.parametrize("added", [[], {"x": {"content": "a"}}, {"1": {}}, {"1": "a"}, {"1": {"content": 2}}])
def test_malformed_added_tokens_are_named(added: object, save_folder: SaveFolder) -> None:
    with pytest.raises(ValueError, match=r"added_tokens_decoder in tokenizer_config\.json"):
        TextTokenizer.load(save_folder("byte_level", tokenizer_config={"added_tokens_decoder": added}))


class TestChatTemplates:
    """Which of a folder's templates is used."""

    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]  # noqa: RUF012

    def test_none(self, loaded: dict[str, TextTokenizer]) -> None:
        assert loaded["byte_level"].chat_template() is None

    def test_a_single_one_serves_tools_too(self, save_folder: SaveFolder) -> None:
        tokenizer = TextTokenizer.load(save_folder("byte_level", tokenizer_config={"chat_template": "C"}))
        assert (tokenizer.chat_template(), tokenizer.chat_template(tools=True)) == ("C", "C")

    def test_named_ones(self, save_folder: SaveFolder) -> None:
        folder = save_folder("byte_level", tokenizer_config={"chat_template": self.named})
        tokenizer = TextTokenizer.load(folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template() == theirs.get_chat_template() == "D"
        assert tokenizer.chat_template(tools=True) == theirs.get_chat_template(tools=[{}]) == "T"

    def test_files_win(self, save_folder: SaveFolder) -> None:
        folder = save_folder("byte_level", tokenizer_config={"chat_template": self.named}, chat_template="FILE")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("TOOLS")
        tokenizer = TextTokenizer.load(folder)
        assert tokenizer.chat_templates == AutoTokenizer.from_pretrained(folder).chat_template
        assert tokenizer.chat_templates == {"default": "FILE", "tool_use": "TOOLS"}

    def test_the_old_json_file_is_read_last(self, save_folder: SaveFolder) -> None:
        folder = save_folder("byte_level")
        (folder / "chat_template.json").write_text('{"chat_template": "OLD"}')
        assert TextTokenizer.load(folder).chat_template() == "OLD"
        (folder / "tokenizer_config.json").write_text('{"chat_template": "NEW"}')
        assert TextTokenizer.load(folder).chat_template() == "NEW"

    def test_another_shape_is_an_error(self, save_folder: SaveFolder) -> None:
        with pytest.raises(ValueError, match=r"chat_template in .*tokenizer_config.json"):
            TextTokenizer.load(save_folder("byte_level", tokenizer_config={"chat_template": ["x"]}))


def test_info_is_the_config_in_plain_json(save_folder: SaveFolder) -> None:
    files = FOLDERS["added_tokens_decoder"]
    tokenizer = TextTokenizer.load(save_folder("byte_level", **files))
    assert tokenizer.info() == CONFIG | {
        "eos_token": "</s>",
        "added_tokens_decoder": {"900": "<tool>", "901": "dog", "902": "</s>"},
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config": {"model_max_length": 512}, "config": {"max_position_embeddings": 8}}, 512),
        ({"tokenizer_config": {"model_max_length": int(1e30)}}, None),
        ({"config": {"max_position_embeddings": 2048}}, 2048),
        ({"config": {"text_config": {"max_position_embeddings": 4096}}}, 4096),
    ],
)
def test_model_max_length(files: dict[str, Any], expected: int | None, save_folder: SaveFolder) -> None:
    tokenizer = TextTokenizer.load(save_folder("byte_level", **files))
    assert tokenizer.model_max_length == expected
    assert tokenizer.info()["model_max_length"] == expected


def test_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, pagoda.text; assert not {'torch', 'transformers', 'grpc', 'zmq'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
