"""The map to HTTP, and how events are written."""

from __future__ import annotations

import json

import pytest

from pagoda.errors import Code, InvalidArgumentError, PagodaError, ResourceExhaustedError, UnavailableError
from pagoda.tokenizer.openai.errors import to_http
from pagoda.tokenizer.openai.sse import error_body, event_body, json_body, last_body

STATUS = {
    Code.CANCELLED: (499, "invalid_request_error"),
    Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Code.DEADLINE_EXCEEDED: (504, "timeout_error"),
    Code.NOT_FOUND: (404, "not_found_error"),
    Code.ALREADY_EXISTS: (409, "conflict_error"),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Code.FAILED_PRECONDITION: (400, "invalid_request_error"),
    Code.ABORTED: (409, "conflict_error"),
    Code.UNIMPLEMENTED: (501, "invalid_request_error"),
    Code.INTERNAL: (500, "server_error"),
    Code.UNAVAILABLE: (503, "service_unavailable"),
    Code.UNAUTHENTICATED: (401, "authentication_error"),
}


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_status_and_a_type(code: Code) -> None:
    error = PagodaError("what was wrong", reason="SOME_REASON", param="n")
    error.code = code
    http = to_http(error, "r")
    kind = STATUS[code][1]
    expected = {"message": "what was wrong", "type": kind, "param": "n", "code": "some_reason"}
    assert http.status == STATUS[code][0]
    assert json.loads(http.body) == {"error": expected}


def test_a_reason_that_only_repeats_the_code_is_left_out() -> None:
    assert json.loads(to_http(InvalidArgumentError("x"), "r").body)["error"]["code"] is None
    assert json.loads(to_http(ResourceExhaustedError("x"), "r").body)["error"]["code"] == "rate_limit_exceeded"


def test_when_to_try_again() -> None:
    assert to_http(ResourceExhaustedError("x", retry_after_s=0.2), "r").retry_after_s == 1
    assert to_http(ResourceExhaustedError("x", retry_after_s=3.1), "r").retry_after_s == 4
    assert to_http(UnavailableError("x"), "r").retry_after_s == 2
    assert to_http(InvalidArgumentError("x"), "r").retry_after_s is None


def test_a_defect_is_logged_and_kept_to_ourselves(caplog: pytest.LogCaptureFixture) -> None:
    http = to_http(KeyError("secret"), "request-9")
    assert http.status == 500
    assert b"secret" not in http.body
    assert "request-9" in caplog.text
    assert "secret" in caplog.text


def test_events() -> None:
    assert event_body([{"a": "ü\n"}, {"b": 1}]).data == 'data: {"a":"ü\\n"}\n\ndata: {"b":1}\n\n'.encode()
    assert last_body([]).data == b"data: [DONE]\n\n"
    assert last_body([1]).data == b"data: 1\n\ndata: [DONE]\n\n"
    assert error_body(b'{"error":{}}').data == b'data: {"error":{}}\n\ndata: [DONE]\n\n'
    assert {body.content_type for body in (event_body([]), last_body([]), error_body(b""))} == {
        "text/event-stream; charset=utf-8"
    }
    assert json_body({"a": 1}).content_type == "application/json"
