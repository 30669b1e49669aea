"""Tiny tokenizers, one for each family of decoders, saved as Hugging Face checkpoint folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from pagoda.text import TextTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Pages and pods: a pagoda has many roofs, one above the other.",
    "def add(a, b):\n    return a + b\n",
    "你好世界。塔有很多层。",
    "naïve café — déjà vu, 100 % sûr!",
] * 4


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte is a token, decoder ByteLevel; one added token is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # "é" is also a byte of the alphabet; "塔 é" is not spelled in the alphabet at all.
    tokenizer.add_tokens(["<think>", "é", "塔 é"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2: SentencePiece BPE with a token for each byte, decoder Replace, ByteFallback, Fuse, Strip."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = sorted(set("▁abcdefghijklmnopqrstuvwxyzTP.,:é你好"))
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "d"), ("o", "g"), ("▁d", "og"), ("▁", "▁")]
    tokens += characters + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5: Unigram, decoder Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: decoder WordPiece, with its cleanup of spaces before punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def no_decoder() -> Tokenizer:
    """A word list without a decoder: tokens are joined by spaces."""
    words = ["<unk>", "the", "dog", "mind", "."]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def word_suffix() -> Tokenizer:
    """As GPT-1: the last token of a word ends in </w>. Its BPEDecoder does not work token by token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker for maker in (byte_level, byte_fallback, metaspace, word_piece, no_decoder, word_suffix)
}

SaveFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def backends() -> dict[str, Tokenizer]:
    """The plain `tokenizers` object of each family, by the name of its maker."""
    return {name: make() for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def folders(backends: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder for each family, with nothing but its tokenizer.json."""
    folders = {}
    for name, backend in backends.items():
        folders[name] = tmp_path_factory.mktemp(name)
        backend.save(str(folders[name] / "tokenizer.json"))
    return folders


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, TextTokenizer]:
    """The TextTokenizer of each family."""
    return {name: TextTokenizer.load(folder) for name, folder in folders.items()}


@pytest.fixture
def save_folder(backends: dict[str, Tokenizer], tmp_path: Path) -> SaveFolder:
    """`save_folder(family, **{file stem: content})` writes a checkpoint folder; a dict is written as JSON."""

    def save(family: str, **files: dict[str, Any] | str) -> Path:
        backends[family].save(str(tmp_path / "tokenizer.json"))
        for stem, content in files.items():
            if isinstance(content, str):
                (tmp_path / f"{stem}.jinja").write_text(content, encoding="utf-8")
            else:
                (tmp_path / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return save
