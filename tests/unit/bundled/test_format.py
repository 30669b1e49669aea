"""The tokenizer, and the two ways to render a conversation."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from pagoda.bundled.chat_format import render
from pagoda.bundled.corpus import encode
from pagoda.bundled.tasks import RECALL_DISTANCES, SHORT_TASKS, TOOL_TASKS, Generator, recall, system_message
from pagoda.bundled.tasks.words import CITIES, ITEMS, NAMES, NOUNS
from pagoda.bundled.tokenizer import train_tokenizer, write_tokenizer

TASKS = {**SHORT_TASKS, **TOOL_TASKS}


@pytest.fixture(scope="module")
def auto_tokenizer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The written files as `transformers` reads them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(tokenizer, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("generate", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("with_system", [False, True])
def test_fast_render_equals_template(auto_tokenizer: Any, generate: Generator, with_system: bool) -> None:
    rng = random.Random(1)
    for _ in range(10):
        sample = generate(rng, "train")
        opening = [system_message(rng)] if with_system else []
        for messages, prompt in (([*opening, *sample.messages], False), ([*opening, *sample.prompt], True)):
            expected = auto_tokenizer.apply_chat_template(
                messages, tools=list(sample.tools) or None, tokenize=False, add_generation_prompt=prompt
            )
            assert render(messages, sample.tools, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": "<tools> \n\n  spaces "}],
        [
            {"role": "user", "content": "Two"},
            {
                "role": "assistant",
                "content": "Both:",
                "tool_calls": [
                    {"type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
                    {"type": "function", "function": {"name": "b", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
        ],
    ],
    ids=["system only", "odd spaces", "two calls"],
)
@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "é"}},)], ids=["plain", "tools"])
def test_fast_render_equals_template_at_the_edges(
    auto_tokenizer: Any, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...]
) -> None:
    expected = auto_tokenizer.apply_chat_template(
        messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
    )
    assert render(messages, tools, add_generation_prompt=True) == expected


def test_template_takes_arguments_as_objects(auto_tokenizer: Any) -> None:
    def conversation(arguments: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]

    as_object = auto_tokenizer.apply_chat_template(conversation({"x": 1}), tokenize=False)
    assert as_object == auto_tokenizer.apply_chat_template(conversation('{"x": 1}'), tokenize=False)


@pytest.mark.parametrize("text", ["", " ", "a  b\n\n c", "hello 🙂🙃 world", "日本語 é ß Ж", "\x00\x7f", "12 345.6e-7"])
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_and_marks_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2026").tokens == list("2026")
    assert len(tokenizer.encode("<|im_start|><|im_end|><|endoftext|>").ids) == 3


def test_pool_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    for word in NAMES + CITIES + NOUNS + ITEMS:
        assert len(tokenizer.encode(f" {word}").ids) == 1
        assert len(tokenizer.encode(word).ids) == 1


@pytest.mark.parametrize("generate", TASKS.values(), ids=TASKS)
def test_pieces_encode_as_the_whole(tokenizer: Tokenizer, generate: Generator) -> None:
    """Training encodes piece by piece; a server encodes the whole prompt."""
    rng = random.Random(2)
    for _ in range(20):
        sample = generate(rng, "train")
        ids, own = encode(tokenizer, sample.messages, sample.tools)
        assert ids == tokenizer.encode(render(sample.messages, sample.tools)).ids
        assert any(own)


@pytest.mark.parametrize("distance", RECALL_DISTANCES)
def test_recall_distance_is_in_tokens(tokenizer: Tokenizer, distance: int) -> None:
    rng = random.Random(distance)
    for _ in range(10):
        sample = recall(rng, "held_out", distance)
        text = render(sample.messages)
        fact = sample.expected["content"]
        between = tokenizer.encode(text[text.index(fact) : text.rindex(fact)]).ids
        assert abs(len(between) - distance) <= 20
        assert len(tokenizer.encode(text).ids) < 2000


def test_training_the_tokenizer_repeats(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(seed=0).to_str() == tokenizer.to_str()
