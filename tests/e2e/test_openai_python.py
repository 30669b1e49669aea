"""The official `openai` package against the whole stack."""

from __future__ import annotations

from collections import Counter
from typing import Any

import openai
import pytest

CHAT = [{"role": "user", "content": "Copy these words: river lamp stone"}]
LONG = {"max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list().data
    return served.id


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=CHAT, temperature=0)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streaming_chat_brings_the_same_text_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=CHAT, **LONG)
    chunks = list(
        client.chat.completions.create(
            model=model, messages=CHAT, stream=True, stream_options={"include_usage": True}, **LONG
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 5
    assert "".join(pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]


def test_streaming_without_usage_carries_none(client: openai.OpenAI, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=CHAT, stream=True, max_tokens=4))
    assert all(chunk.usage is None for chunk in chunks)


def test_completion_prompts_of_all_four_forms_agree(server: Any, client: openai.OpenAI, model: str) -> None:
    text = "The code of Anna is"
    ids = server.post("/tokenize", {"model": model, "prompt": text})["tokens"]
    forms: list[Any] = [text, [text, text], ids, [ids, ids]]
    answers = [client.completions.create(model=model, prompt=prompt, **LONG) for prompt in forms]
    assert [len(answer.choices) for answer in answers] == [1, 2, 1, 2]
    assert [choice.index for choice in answers[3].choices] == [0, 1]
    texts = {choice.text for answer in answers for choice in answer.choices}
    assert len(texts) == 1
    assert answers[1].usage is not None
    assert answers[1].usage.prompt_tokens == 2 * len(ids)


def test_streaming_completion(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="One two", **LONG)
    stream = client.completions.create(model=model, prompt="One two", stream=True, **LONG)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_three_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI, model: str) -> None:
    ask: dict[str, Any] = {
        "model": model,
        "messages": CHAT,
        "n": 3,
        "seed": 11,
        "temperature": 1.8,
        "max_tokens": 24,
        "extra_body": {"ignore_eos": True},
    }
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in second.choices] == texts
    assert first.usage is not None
    assert first.usage.completion_tokens == 3 * 24


def test_streamed_choices_match_the_whole_ones(client: openai.OpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "messages": CHAT, "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 16}
    whole = client.chat.completions.create(**ask)
    texts: Counter[int] = Counter()
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(stream=True, **ask):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            texts[choice.index] += choice.finish_reason is not None
    assert streamed == {choice.index: choice.message.content for choice in whole.choices}
    assert texts == {0: 1, 1: 1, 2: 1}


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="Hello", **LONG).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)]
    cut = client.completions.create(model=model, prompt="Hello", stop=[stop, "\x00never"], **LONG).choices[0]
    assert (cut.text, cut.finish_reason) == (expected, "stop")
    streamed = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model=model, prompt="Hello", stop=stop, stream=True, **LONG)
    )
    assert streamed == expected


def test_cached_prompt_tokens_are_reported(client: openai.OpenAI, model: str) -> None:
    prompt = "A prefix that nobody else sends, long enough for several blocks: " + "x y z " * 30
    first, second = (client.completions.create(model=model, prompt=prompt, **LONG) for _ in range(2))
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // 16 * 16 - 16 > 0
    assert second.choices[0].text == first.choices[0].text


def test_errors_are_the_classes_a_client_catches(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody/nothing", messages=CHAT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as range_error:
        client.chat.completions.create(model=model, messages=CHAT, temperature=-1)
    assert range_error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=model, prompt="x", max_tokens=1_000_000)
    assert too_long.value.code == "context_length_exceeded"


def test_a_model_is_retrieved_by_its_name(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
