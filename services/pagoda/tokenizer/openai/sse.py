"""HTTP bodies: JSON documents, and server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from google.api.httpbody_pb2 import HttpBody

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

DONE = b"data: [DONE]\n\n"

# JSON of structs and plain objects, as bytes.
encode = msgspec.json.Encoder().encode


def json_body(content: Any) -> HttpBody:
    """A whole answer."""
    return HttpBody(content_type=JSON, data=encode(content))


def event_body(contents: Iterable[Any]) -> HttpBody:
    """Events that are ready at the same time, in one piece."""
    return HttpBody(content_type=EVENT_STREAM, data=b"".join([b"data: %b\n\n" % encode(each) for each in contents]))


def error_body(error: bytes) -> HttpBody:
    """The end of a stream that failed: OpenAI's error object as an event, then the mark that clients wait for."""
    return HttpBody(content_type=EVENT_STREAM, data=b"data: %b\n\n" % error + DONE)


def last_body(contents: Iterable[Any]) -> HttpBody:
    """The last events of a stream, and its end."""
    body = event_body(contents)
    body.data += DONE
    return body
