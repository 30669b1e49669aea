"""What Envoy itself answers (no backend, unknown path, oversized body ...), in the shape of OpenAI's errors.

A reply is a message mapper of Envoy's `local_reply_config`; the first one whose filter matches wins. Messages
are Envoy format strings: %LOCAL_REPLY_BODY% is Envoy's own sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Filter = dict[str, Any]


@dataclass(frozen=True)
class LocalReply:
    """filter: an `envoy.config.accesslog.v3.AccessLogFilter`; status: what to answer instead of Envoy's own."""

    filter: Filter
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def local_replies(http_paths: Mapping[str, str], max_body_bytes: int) -> list[LocalReply]:
    """http_paths: HTTP method -> regular expression of its paths, to tell a wrong method from a wrong path."""
    wrong_method = [
        LocalReply(
            _both(_status(404), _path(regex)),
            f"Method %REQ(:METHOD)% is not allowed for this path; use {method}.",
            code="method_not_allowed",
            status=405,
            headers={"allow": method},
        )
        for method, regex in http_paths.items()
    ]
    return [
        LocalReply(
            {"response_flag_filter": {"flags": ["UO"]}},
            "Too many requests are in flight; retry shortly.",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            status=429,
            headers={"retry-after": "1"},
        ),
        LocalReply(
            _status(401),
            "No valid API key provided; send it as 'Authorization: Bearer <key>'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        ),
        *wrong_method,
        LocalReply(
            _status(404),
            "Unknown path: %REQ(:METHOD)% %PATH(NQ:ORIG_OR_PATH)%",
            code="unknown_url",
        ),
        LocalReply(_status(408), "The request did not arrive in time.", type="timeout_error", code="request_timeout"),
        LocalReply(
            _status(413),
            f"The request body is larger than the {max_body_bytes} bytes that this server accepts.",
            code="request_too_large",
        ),
        LocalReply(_status(431), "The request's headers are too large.", code="headers_too_large"),
        LocalReply(_status_range(400, 499), "Malformed request: %LOCAL_REPLY_BODY%", code="bad_request"),
        LocalReply(
            {"response_flag_filter": {"flags": ["UH"]}},
            "No tokenizer service is ready; retry shortly.",
            type="service_unavailable",
            code="no_healthy_backend",
            headers={"retry-after": "1"},
        ),
        LocalReply(
            _status(503),
            "The connection to the tokenizer service broke; retry. (%LOCAL_REPLY_BODY%)",
            type="service_unavailable",
            code="backend_connection_lost",
            headers={"retry-after": "1"},
        ),
        LocalReply(_status(504), "The server did not answer in time.", type="timeout_error", code="backend_timeout"),
    ]


def _status(code: int) -> Filter:
    return {"status_code_filter": {"comparison": _comparison("EQ", code)}}


def _status_range(low: int, high: int) -> Filter:
    return _both(
        {"status_code_filter": {"comparison": _comparison("GE", low)}},
        {"status_code_filter": {"comparison": _comparison("LE", high)}},
    )


def _comparison(op: str, code: int) -> dict[str, Any]:
    # Envoy insists on a runtime key; nothing ever sets it.
    return {"op": op, "value": {"default_value": code, "runtime_key": f"local_reply.{op}.{code}"}}


def _path(regex: str) -> Filter:
    matcher = {"safe_regex": {"regex": rf"(?:{regex})(?:\?.*)?"}}
    return {"header_filter": {"header": {"name": ":path", "string_match": matcher}}}


def _both(*filters: Filter) -> Filter:
    return {"and_filter": {"filters": list(filters)}}
