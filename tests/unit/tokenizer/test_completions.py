"""/v1/completions."""

from __future__ import annotations

from typing import Any

from http_client import DONE, HttpClient
from openai.types import Completion
from scripted_scheduler import ScriptedScheduler, prompt_of

from pagoda.text import TextTokenizer

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 64}


async def test_prompts_of_all_four_forms(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    ids = tokenizer.encode("the stone")
    for prompt, count in (("the stone", 1), (["the stone"] * 2, 2), (ids, 1), ([ids, ids], 2)):
        answer = await client.completion({**ASK, "prompt": prompt})
        Completion.model_validate(answer.json, strict=True)
        assert [choice["text"] for choice in answer.json["choices"]] == ["Echo: the stone"] * count
        assert answer.json["usage"]["prompt_tokens"] == count * len(ids)
    assert {tuple(prompt_of(request)) for request in scheduler.requests} == {tuple(ids)}


async def test_choices_are_numbered_prompt_by_prompt(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    answer = await client.completion({**ASK, "prompt": ["a", "b"], "n": 2, "seed": 5})
    texts = {choice["index"]: choice["text"] for choice in answer.json["choices"]}
    assert texts == {0: "Echo: a", 1: "Echo: a", 2: "Echo: b", 3: "Echo: b"}
    assert [request.sampling.seed for request in scheduler.requests] == [5, 6, 5, 6]


async def test_client_priority_and_timeout_travel_with_the_request(
    client: HttpClient, scheduler: ScriptedScheduler
) -> None:
    await client.completion({**ASK, "prompt": "a", "priority": 5, "user": "ann"}, x_request_timeout_ms="60000")
    (request,) = scheduler.requests
    assert (request.client_id, request.priority) == ("ann", 5)
    assert 50 < request.timeout_s <= 60


async def test_prompts_without_a_seed_draw_differently(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    await client.completion({**ASK, "prompt": ["a", "a"]})
    assert len({request.sampling.seed for request in scheduler.requests}) == 2


async def test_a_stream(client: HttpClient) -> None:
    answer = await client.completion(
        {**ASK, "prompt": "the", "stream": True, "stream_options": {"include_usage": True}}
    )
    *events, usage, done = answer.events
    assert done == DONE
    for event in (events[-1], usage):
        Completion.model_validate(event, strict=True)
    assert "".join(event["choices"][0]["text"] for event in events) == "Echo: the"
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert usage["choices"] == []


async def test_echo_begins_with_the_prompt(client: HttpClient, tokenizer: TextTokenizer) -> None:
    for prompt in ("the stone", tokenizer.encode("the stone")):
        whole = await client.completion({**ASK, "prompt": prompt, "echo": True})
        assert whole.json["choices"][0]["text"] == "the stoneEcho: the stone"
        events = (await client.completion({**ASK, "prompt": prompt, "echo": True, "stream": True})).events[:-1]
        assert "".join(event["choices"][0]["text"] for event in events) == "the stoneEcho: the stone"


async def test_sixteen_tokens_unless_asked_for_more(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    await client.completion({"prompt": "a"})
    await client.completion({"prompt": "a", "max_tokens": None})
    assert [request.sampling.max_tokens for request in scheduler.requests] == [16, 255]


async def test_characters_are_never_cut(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    scheduler.reply = lambda request: tokenizer.encode("塔 è 🗼!")
    events = (await client.completion({**ASK, "prompt": "a", "stream": True})).events[:-1]
    texts = [event["choices"][0]["text"] for event in events]
    assert "".join(texts) == "塔 è 🗼!"
    assert not any("\ufffd" in text for text in texts)


async def test_parameters_reach_the_scheduler_as_given(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    given = {"temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.25, "ignore_eos": True, "min_tokens": 3}
    await client.completion({"prompt": "a", **given})
    sampling = scheduler.requests[0].sampling
    assert {name: getattr(sampling, name) for name in given} == given
    await client.completion({"prompt": "a"})
    defaulted = scheduler.requests[1].sampling
    assert not any(defaulted.HasField(name) for name in ("temperature", "top_p", "top_k", "min_p"))


async def test_cached_tokens_are_told_also_when_a_stop_string_ends_the_text(client: HttpClient) -> None:
    answer = await client.completion({**ASK, "prompt": [5, 6, 7, 8], "stop": ": "})
    assert answer.json["choices"][0]["text"] == "Echo"
    assert answer.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
