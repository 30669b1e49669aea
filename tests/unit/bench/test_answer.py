"""What an answer says of itself, with times that the test chooses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pagoda.bench.serving.answer import Answer


def text(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": content, "index": 0, "finish_reason": reason}], "usage": None}


def chat(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": delta, "index": 0, "finish_reason": reason}]}


def usage(num_prompt: int, num_completion: int, **more: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_completion, **more}}


def answer(*events: tuple[float, dict[str, Any] | str], status: int = 200) -> Answer:
    """events: (when, content)"""
    made = Answer(started_at=10.0)
    for now, event in events:
        content = event if isinstance(event, str) else json.dumps(event)
        made.receive(200, f"data: {content}\n\n".encode(), now)
    made.end(status)
    return made


def test_tokens_are_those_of_the_server_and_times_those_of_events() -> None:
    found = answer(
        (11.0, text("ab")),
        (11.5, text("cd")),
        (13.0, text("", "length")),
        (13.5, usage(7, 5, prompt_tokens_details={"cached_tokens": 4})),
        (14.0, "[DONE]"),
    )
    assert found.is_ok
    assert found.is_counted
    assert (found.num_prompt_tokens, found.num_cached_tokens, found.num_output_tokens) == (7, 4, 5)
    assert found.event_times.tolist() == [11.0, 11.5]
    assert (found.ttft_s, found.e2el_s, found.tpot_s) == (1.0, 3.0, 0.5)


def test_a_chat_begins_with_its_first_text() -> None:
    found = answer(
        (10.5, chat({"role": "assistant", "content": ""})),
        (11.0, chat({"reasoning_content": "hm"})),
        (12.0, chat({"content": "a"})),
        (12.5, chat({"tool_calls": [{"index": 0}]})),
        (13.0, chat({}, "stop")),
        (13.0, usage(3, 4)),
    )
    assert found.is_ok
    assert found.event_times.tolist() == [11.0, 12.0, 12.5]
    assert found.tpot_s == pytest.approx(2 / 3)


def test_without_usage_events_are_counted() -> None:
    found = answer((11.0, text("a")), (12.0, text("b", "stop")), (12.0, "[DONE]"))
    assert found.is_ok
    assert not found.is_counted
    assert found.num_output_tokens == 2


def test_an_answer_without_text() -> None:
    """Of special tokens only."""
    found = answer((12.0, text("", "length")), (12.0, usage(3, 1)))
    assert found.is_ok
    assert (found.ttft_s, found.e2el_s, found.tpot_s) == (2.0, 2.0, None)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([], "no event with a choice came"),
        ([(11.0, text("a"))], "the stream ended without a reason to finish"),
        ([(11.0, text("a")), (12.0, {"error": {"message": "the executor died", "code": 503}})], "the executor died"),
        ([(11.0, {"error": "sorry"}), (11.0, "[DONE]")], "sorry"),
        ([(11.0, "{")], "an event that is no JSON of a completion"),
    ],
)
def test_failures(events: list[Any], error: str) -> None:
    found = answer(*events)
    assert not found.is_ok
    assert found.error.startswith(error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "too long", "type": "x"}}', "HTTP 400: too long"),
        (b'{"message": "too long"}', "HTTP 400: too long"),
        (b'{"error": "too long"}', "HTTP 400: too long"),
        (b"<html>no</html>\n", "HTTP 400: <html>no</html>"),
        (b"", "HTTP 400: "),
    ],
)
def test_refusals(body: bytes, error: str) -> None:
    refused = Answer(started_at=0.0)
    refused.receive(400, body[:5], 1.0)
    refused.receive(400, body[5:], 1.1)
    refused.end(400)
    assert refused.error == error
