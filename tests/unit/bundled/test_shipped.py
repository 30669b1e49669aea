"""The shipped folders: complete, small, of one tokenizer; and the weights answer held-out questions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from pagoda.bundled import CHAT_MODEL, DRAFT_MODEL
from pagoda.bundled.chat_format import CHAT_TEMPLATE, IM_END
from pagoda.bundled.evaluate import accuracy
from pagoda.bundled.export import load_exported
from pagoda.bundled.model import Llama, chat_config, draft_config
from pagoda.bundled.tasks import SHORT_TASKS, TOOL_TASKS, Sample, recall
from pagoda.bundled.tasks.base import assistant, user
from pagoda.bundled.tasks.words import CITIES, ITEMS, NAMES, NOUNS

MAX_SHIPPED_BYTES = 16 * 2**20
SAMPLES = 20

both = pytest.mark.parametrize("folder", [CHAT_MODEL, DRAFT_MODEL], ids=["chat", "draft"])


@pytest.fixture(scope="module")
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHAT_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Llama:
    return load_exported(CHAT_MODEL)[0]


def test_sizes_are_those_of_the_script_and_the_draft_is_at_most_a_quarter(model: Llama) -> None:
    draft, _ = load_exported(DRAFT_MODEL)
    assert model.config == chat_config(model.config.vocab_size)
    assert draft.config == draft_config(model.config.vocab_size)
    sizes = [sum(parameter.numel() for parameter in m.parameters()) for m in (model, draft)]
    assert 4 * sizes[1] <= sizes[0]
    assert all(torch.isfinite(parameter).all() for m in (model, draft) for parameter in m.parameters())


@both
def test_configuration_is_a_llama_of_2048_positions(folder: Path, shipped_tokenizer: Tokenizer) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["tie_word_embeddings"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert shipped_tokenizer.token_to_id(IM_END) in generation["eos_token_id"]


@both
def test_tokenizer_is_the_same_with_the_current_template(folder: Path) -> None:
    assert (folder / "tokenizer.json").read_bytes() == (CHAT_MODEL / "tokenizer.json").read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE


def test_pool_words_are_single_tokens(shipped_tokenizer: Tokenizer) -> None:
    for word in NAMES + CITIES + NOUNS + ITEMS:
        assert len(shipped_tokenizer.encode(f" {word}").ids) == 1


def test_size() -> None:
    files = [file for folder in (CHAT_MODEL, DRAFT_MODEL) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_SHIPPED_BYTES


@pytest.mark.parametrize("task", ["copy", "addition", "json", "tool_call"])
def test_answers_held_out_questions(model: Llama, shipped_tokenizer: Tokenizer, task: str) -> None:
    rng = random.Random(11)
    generate = {**SHORT_TASKS, **TOOL_TASKS}[task]
    assert accuracy(model, shipped_tokenizer, [generate(rng, "held_out") for _ in range(SAMPLES)]) >= 0.85


@pytest.mark.parametrize("distance", [100, 600, 1500])
def test_recalls(model: Llama, shipped_tokenizer: Tokenizer, distance: int) -> None:
    rng = random.Random(distance)
    assert accuracy(model, shipped_tokenizer, [recall(rng, "held_out", distance) for _ in range(SAMPLES)]) >= 0.8


@pytest.mark.parametrize("text", ["hello", "Hello!", "hi"])
def test_greets(model: Llama, shipped_tokenizer: Tokenizer, text: str) -> None:
    greeting = Sample("small_talk", (user(text), assistant("Hello! How can I help you today?")))
    assert accuracy(model, shipped_tokenizer, [greeting]) == 1.0
