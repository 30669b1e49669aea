"""/v1/chat/completions: shapes, streams, ends."""

from __future__ import annotations

from typing import Any

import pytest
from http_client import DONE, HttpClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted_scheduler import ScriptedScheduler, prompt_of

from pagoda.text import TextTokenizer

USER = [{"role": "user", "content": "Hello"}]
ASK: dict[str, Any] = {"model": "tiny", "messages": USER}
RENDERED = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
# What the scripted scheduler echoes of it; the marks of turns are special tokens and not written out.
ECHO = "Echo: user\nHello\nassistant\n"


@pytest.fixture
def prompt_ids(tokenizer: TextTokenizer) -> list[int]:
    return tokenizer.encode(RENDERED)


def contents(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events if event != DONE for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_a_whole_answer_has_openais_shape(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer, prompt_ids: list[int]
) -> None:
    answer = await client.chat(ASK, x_request_id="req-7")
    (completion,) = (ChatCompletion.model_validate(answer.json, strict=True),)
    num_completion = len(tokenizer.encode("Echo: ")) + len(prompt_ids) + 1
    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert answer.json == {
        "id": "chatcmpl-req-7",
        "object": "chat.completion",
        "created": completion.created,
        "model": "tiny",
        "system_fingerprint": "fp_0123456789",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ECHO, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": next(iter(tokenizer.eos_token_ids)),
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt_ids),
            "completion_tokens": num_completion,
            "total_tokens": len(prompt_ids) + num_completion,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }
    (request,) = scheduler.requests
    assert request.request_id == "req-7"
    assert prompt_of(request) == prompt_ids
    assert request.sampling.max_tokens == 256 - len(prompt_ids)
    assert request.sampling.HasField("seed")


async def test_a_stream_is_role_content_end_usage_and_the_mark(client: HttpClient) -> None:
    answer = await client.chat({**ASK, "stream": True, "stream_options": {"include_usage": True}})
    events = answer.events
    assert answer.content_type == "text/event-stream; charset=utf-8"
    assert events.pop() == DONE
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    assert events[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert contents(events) == ECHO
    usage = events.pop()
    assert (usage["choices"], usage["usage"]["prompt_tokens_details"]) == ([], {"cached_tokens": 3})
    assert all(event["usage"] is None for event in events)
    assert len({event["id"] for event in events}) == 1
    last = events[-1]["choices"][0]
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)


async def test_without_stream_options_no_event_has_usage(client: HttpClient) -> None:
    events = (await client.chat({**ASK, "stream": True})).events
    assert all("usage" not in event for event in events if event != DONE)


async def test_continuous_usage_counts_up(client: HttpClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await client.chat({**ASK, "stream": True, "stream_options": options})).events
    counts = [event["usage"]["completion_tokens"] for event in events if event != DONE]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


async def test_n_choices_draw_with_seeds_of_their_own(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    answer = await client.chat({**ASK, "n": 3, "seed": 2**64 - 1})
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in scheduler.requests] == [2**64 - 1, 0, 1]
    assert len(scheduler.messages) == 1
    usage = answer.json["usage"]
    assert usage["completion_tokens"] % 3 == 0
    assert usage["prompt_tokens"] == scheduler.requests[0].num_prompt_tokens


async def test_the_tokens_of_one_step_come_in_one_piece(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    call = client.start_chat({**ASK, "n": 4, "stream": True})
    await scheduler.until(lambda: len(scheduler.requests) == 4)
    scheduler.step()
    first = await call.read()
    # The role and the first content of each choice.
    assert first.data.count(b"data: ") == 8
    call.cancel()


async def test_a_negative_seed_is_one_too(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    await client.chat({**ASK, "seed": -1})
    assert scheduler.requests[0].sampling.seed == 2**64 - 1


async def test_the_stop_tokens_text_is_left_out(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    (stop_id,) = tokenizer.encode("!")
    scheduler.eos_token_id = stop_id
    scheduler.reply = lambda request: [*tokenizer.encode("Hi"), stop_id]
    answer = await client.chat({**ASK, "stop_token_ids": [stop_id]})
    assert list(scheduler.requests[0].sampling.stop_token_ids) == [stop_id]
    assert answer.json["choices"][0]["message"]["content"] == "Hi"
    assert answer.json["usage"]["completion_tokens"] == len(tokenizer.encode("Hi")) + 1
    kept = await client.chat({**ASK, "stop_token_ids": [stop_id], "include_stop_str_in_output": True})
    assert kept.json["choices"][0]["message"]["content"] == "Hi!"


async def test_a_stop_string_across_tokens_ends_the_answer_and_the_request(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    scheduler.reply = lambda request: tokenizer.encode("alpha beta gamma delta" * 5)
    ask = {**ASK, "stop": ["nothing", "a gam"]}
    whole = await client.chat(ask)
    choice = whole.json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (
        "alpha bet",
        "stop",
        "a gam",
    )
    await scheduler.until(lambda: scheduler.aborted == [scheduler.requests[0].key])
    # Tokens after the one that completed the stop string do not count, however they came.
    scheduler.paused = True
    call = client.start_chat({**ask, "stream": True, "stream_options": {"include_usage": True}})
    await scheduler.until(lambda: len(scheduler.requests) == 2)
    scheduler.step(num_tokens=40)
    pieces = [body.data async for body in call]
    assert b'"completion_tokens":%d' % whole.json["usage"]["completion_tokens"] in pieces[-1]
    await scheduler.until(lambda: len(scheduler.aborted) == 2)


async def test_a_stop_string_in_the_first_min_tokens_does_not_count(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    scheduler.reply = lambda request: tokenizer.encode("xyzxyzxyz")
    answer = await client.chat({**ASK, "stop": "z", "min_tokens": 4})
    assert answer.json["choices"][0]["message"]["content"] == "xyzxy"


async def test_special_tokens_on_request(client: HttpClient) -> None:
    answer = await client.chat({**ASK, "skip_special_tokens": False})
    assert answer.json["choices"][0]["message"]["content"] == f"Echo: {RENDERED}"


async def test_length_ends_with_its_reason(client: HttpClient) -> None:
    answer = await client.chat({**ASK, "max_tokens": 99, "max_completion_tokens": 4})
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 4
    assert "stop_reason" not in answer.json["choices"][0]


async def test_token_ids_on_request(client: HttpClient, prompt_ids: list[int]) -> None:
    whole = (await client.chat({**ASK, "return_token_ids": True})).json
    assert whole["prompt_token_ids"] == prompt_ids
    assert len(whole["choices"][0]["token_ids"]) == whole["usage"]["completion_tokens"]
    events = (await client.chat({**ASK, "return_token_ids": True, "stream": True})).events[:-1]
    assert events[0]["prompt_token_ids"] == prompt_ids
    streamed = [token_id for event in events for token_id in event["choices"][0].get("token_ids", [])]
    assert streamed == whole["choices"][0]["token_ids"]


async def test_tools_are_rendered_unless_turned_off(client: HttpClient) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    with_tools = await client.chat({**ASK, "tools": tools, "tool_choice": "auto"})
    assert "<tool>clock</tool>" in with_tools.json["choices"][0]["message"]["content"]
    without = await client.chat({**ASK, "tools": tools, "tool_choice": "none"})
    assert "clock" not in without.json["choices"][0]["message"]["content"]


async def test_content_parts_and_a_continued_message(client: HttpClient) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three and"},
    ]
    ask = {**ASK, "messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    answer = await client.chat(ask)
    assert answer.json["choices"][0]["message"]["content"] == "Echo: user\none\ntwo\nassistant\nthree and"


async def test_priority_client_and_salt_travel_with_the_request(
    client: HttpClient, scheduler: ScriptedScheduler
) -> None:
    await client.chat({**ASK, "priority": -3, "cache_salt": "mine", "request_id": "own"}, x_client_id="bob")
    await client.chat(ASK, x_client_id="eve")
    await client.chat(ASK)
    first, second, third = scheduler.requests
    assert (first.priority, first.client_id, first.request_id) == (-3, "bob", "own")
    assert len({first.cache_salt, second.cache_salt, b""}) == 3
    assert (third.client_id, third.cache_salt) == ("", b"")


async def test_without_a_key_the_user_is_whom_to_be_fair_to(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    await client.chat({**ASK, "user": "zoë"})
    await client.chat({**ASK, "user": "zoë"}, x_client_id="key-1")
    claimed, known = scheduler.requests
    assert (claimed.client_id, known.client_id) == ("zoë", "key-1")
    # Who somebody claims to be does not decide whose cached prompts they find.
    assert claimed.cache_salt == b""


async def test_a_timeout_travels_with_the_request(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    await client.chat({**ASK, "n": 2}, x_request_timeout_ms="60000")
    await client.chat(ASK)
    *timed, free = scheduler.requests
    assert all(50 < request.timeout_s <= 60 for request in timed)
    assert not free.HasField("timeout_s")


async def test_a_long_conversation_is_encoded_in_a_thread(client: HttpClient) -> None:
    messages = [{"role": "user", "content": " the" * 100, "name": "x" * 5000}]
    answer = await client.chat({**ASK, "messages": messages, "max_tokens": 1})
    assert answer.status == 200
