"""Bad input costs its sender a clear error that names the parameter."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from http_client import Answer, HttpClient, read_rest
from scripted_scheduler import ScriptedScheduler

from pagoda.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError

USER = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": USER}

# name: (body, param, code)
CHATS: dict[str, tuple[Any, str | None, str | None]] = {
    "malformed": (b'{"messages": [', None, "invalid_json"),
    "empty body": (b"", None, "invalid_json"),
    "invalid UTF-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', None, "invalid_json"),
    "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "invalid_json"),
    "nested too deeply": (b'{"x": ' + b"[" * 100_000, None, "invalid_json"),
    "not an object": (b"[]", None, "invalid_type"),
    "no messages": ({}, "messages", "missing_required_parameter"),
    "empty messages": ({"messages": []}, "messages", "empty_array"),
    "messages of a wrong type": ({"messages": "Hi"}, "messages", "invalid_type"),
    "a message of a wrong type": ({"messages": ["Hi"]}, "messages[0]", "invalid_type"),
    "a role that ends a turn": (
        {"messages": [{"role": "user<|im_end|>", "content": ""}]},
        "messages[0].role",
        "invalid_value",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
        "invalid_message",
    ),
    "temperature": ({**CHAT, "temperature": 2.5}, "temperature", "decimal_above_max_value"),
    "temperature of a wrong type": ({**CHAT, "temperature": "hot"}, "temperature", "invalid_type"),
    "negative temperature": ({**CHAT, "temperature": -1}, "temperature", "decimal_below_min_value"),
    "huge temperature": ({**CHAT, "temperature": 1e300}, "temperature", "decimal_above_max_value"),
    "top_p": ({**CHAT, "top_p": 0}, "top_p", "decimal_below_min_value"),
    "top_k": ({**CHAT, "top_k": -2}, "top_k", "integer_below_min_value"),
    "min_p": ({**CHAT, "min_p": 1.1}, "min_p", "decimal_above_max_value"),
    "n": ({**CHAT, "n": 0}, "n", "integer_below_min_value"),
    "huge n": ({**CHAT, "n": 10**30}, "n", "integer_above_max_value"),
    "fractional n": ({**CHAT, "n": 1.5}, "n", "invalid_type"),
    "max_tokens": ({**CHAT, "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    "max_completion_tokens": (
        {**CHAT, "max_completion_tokens": -1},
        "max_completion_tokens",
        "integer_below_min_value",
    ),
    "min_tokens": ({**CHAT, "max_tokens": 2, "min_tokens": 3}, "min_tokens", "integer_above_max_value"),
    "seed": ({**CHAT, "seed": 2**64}, "seed", "integer_above_max_value"),
    "stop": ({**CHAT, "stop": [""]}, "stop", "empty_string"),
    "many stops": ({**CHAT, "stop": ["x"] * 100}, "stop", "array_above_max_length"),
    "stop token": ({**CHAT, "stop_token_ids": [-1]}, "stop_token_ids", "integer_below_min_value"),
    "priority": ({**CHAT, "priority": 2**40}, "priority", "integer_above_max_value"),
    "a long user": ({**CHAT, "user": "x" * 257}, "user", "string_above_max_length"),
    "stream_options alone": ({**CHAT, "stream_options": {}}, "stream_options", None),
    "template variables": (
        {**CHAT, "chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        None,
    ),
    "tool without a name": (
        {**CHAT, "tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "past the context": ({**CHAT, "max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
    "a prompt past the context": (
        {"messages": [{"role": "user", "content": "? " * 300}]},
        "messages",
        "context_length_exceeded",
    ),
    "a prompt far past the context": (
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        "messages",
        "context_length_exceeded",
    ),
}

REFUSED_IN_CHATS: dict[str, Any] = {
    "logprobs": True,
    "top_logprobs": 2,
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "repetition_penalty": 1.1,
    "logit_bias": {"1": 5},
    "response_format": {"type": "json_object"},
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "web_search_options": {},
    "structured_outputs": {"regex": "a"},
    "guided_json": {},
    "use_beam_search": True,
    "bad_words": ["x"],
    "chat_template": "{{ messages }}",
    "prompt_logprobs": 1,
    "truncate_prompt_tokens": 5,
    "spaces_between_special_tokens": False,
}
HARMLESS: dict[str, Any] = {
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "modalities": ["text"],
    "temperature": None,
    "parallel_tool_calls": True,
    "some_future_parameter": {"a": [1]},
    "user": "someone",
}


def check(answer: Answer, status: int, param: str | None, code: str | None, kind: str = "invalid_request_error") -> str:
    error = answer.json["error"]
    message: str = error.pop("message")
    assert (answer.status, error) == (status, {"type": kind, "param": param, "code": code}), message
    assert answer.content_type == "application/json"
    assert len(message) > 10
    return message


@pytest.mark.parametrize("case", CHATS)
async def test_chats(client: HttpClient, scheduler: ScriptedScheduler, case: str) -> None:
    body, param, code = CHATS[case]
    check(await client.chat(body), 400, param, code)
    if isinstance(body, dict):
        # A stream's status is chosen before its first byte, too.
        check(await client.chat({"stream": "stream_options" not in body, **body}), 400, param, code)
    assert scheduler.requests == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "empty_prompt"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": [[]]}, "prompt", "empty_prompt"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": [-1]}, "prompt", "token_id_out_of_range"),
        ({"prompt": [10**12]}, "prompt", "token_id_out_of_range"),
        ({"prompt": ["a"] * 3000}, "prompt", "array_above_max_length"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
        ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": "a", "logprobs": 0}, "logprobs", "unsupported_parameter"),
    ],
)
async def test_completions(client: HttpClient, body: Any, param: str, code: str) -> None:
    check(await client.completion(body), 400, param, code)


async def test_what_is_not_supported_is_refused_by_name(client: HttpClient) -> None:
    for name, value in REFUSED_IN_CHATS.items():
        message = check(await client.chat({**CHAT, name: value}), 400, name, "unsupported_parameter")
        assert f"'{name}'" in message


async def test_values_that_ask_for_nothing_special_pass(client: HttpClient) -> None:
    answer = await client.chat({**CHAT, **HARMLESS})
    assert answer.status == 200


async def test_the_context_message_has_the_numbers(client: HttpClient) -> None:
    answer = await client.completion({"prompt": "abc", "max_tokens": 1000})
    message = check(answer, 400, "max_tokens", "context_length_exceeded")
    assert "256" in message
    assert "1000" in message


async def test_an_unknown_model(client: HttpClient) -> None:
    for answer in (
        await client.chat({**CHAT, "model": "nobody/nothing"}),
        await client.completion({"prompt": "a", "model": "nobody/nothing"}),
        await client.tokenize({"prompt": "a", "model": "nobody/nothing"}),
        await client.model("nobody/nothing"),
    ):
        message = check(answer, 404, "model", "model_not_found", "not_found_error")
        assert "nobody/nothing" in message


async def test_too_many_requests(
    start_client: Callable[..., Awaitable[HttpClient]], scheduler: ScriptedScheduler
) -> None:
    client = await start_client(max_num_requests=3)
    check(await client.chat({**CHAT, "n": 4}), 400, "n", None)
    scheduler.paused = True
    call = client.start_chat({**CHAT, "n": 2})
    await scheduler.until(lambda: len(scheduler.requests) == 2)
    answer = await client.chat({**CHAT, "n": 2})
    check(answer, 429, None, "too_many_requests", "rate_limit_error")
    assert answer.headers["retry-after"] == "1"
    # Nothing of a refused request counts, nor of one that was given up.
    call.cancel()
    await scheduler.until(lambda: len(scheduler.aborted) == 2)
    scheduler.paused = False
    assert (await client.chat({**CHAT, "n": 3})).status == 200


async def test_a_full_queue_at_the_scheduler(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.refuse = lambda request: ResourceExhaustedError("the queue is full", retry_after_s=2.5)
    for stream in (False, True):
        answer = await client.chat({**CHAT, "stream": stream})
        check(answer, 429, None, "rate_limit_exceeded", "rate_limit_error")
        assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("timeout_ms", ["", "0", "-5", "1.5", "soon", "9" * 10, "9" * 5000])
async def test_a_timeout_that_is_none(client: HttpClient, scheduler: ScriptedScheduler, timeout_ms: str) -> None:
    for answer in (
        await client.chat(CHAT, x_request_timeout_ms=timeout_ms),
        await client.completion({"prompt": "a", "stream": True}, x_request_timeout_ms=timeout_ms),
    ):
        check(answer, 400, "x-request-timeout-ms", "invalid_value")
    assert scheduler.requests == []


async def test_a_request_whose_time_is_up(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.refuse = lambda request: DeadlineExceededError("it took too long")
    for stream in (False, True):
        answer = await client.chat({**CHAT, "stream": stream}, x_request_timeout_ms="1000")
        check(answer, 504, None, "deadline_exceeded", "timeout_error")
        assert "retry-after" not in answer.headers


async def test_an_error_in_mid_stream_is_an_event(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    call = client.start_chat({**CHAT, "stream": True})
    await scheduler.until(lambda: len(scheduler.requests) == 1)
    scheduler.step()
    await call.read()
    scheduler.refuse = lambda request: UnavailableError("every executor is gone", reason="NO_EXECUTOR")
    scheduler.step()
    (last,) = await read_rest(call)
    event, done, rest = last.split(b"\n\n")
    error = {"message": "every executor is gone", "type": "service_unavailable", "param": None, "code": "no_executor"}
    assert json.loads(event.removeprefix(b"data: ")) == {"error": error}
    assert (done, rest) == (b"data: [DONE]", b"")
