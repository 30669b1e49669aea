"""The one map from domain errors to HTTP statuses and OpenAI's error JSON."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from pagoda.errors import Code, InternalError, PagodaError, ResourceExhaustedError
from pagoda.tokenizer.openai.sse import encode

logger = logging.getLogger(__name__)

# Seconds after which to try a service again that is not available.
_UNAVAILABLE_RETRY_S = 2

# Code -> (HTTP status, OpenAI's type, OpenAI's code where the error's reason says no more than the code).
_HTTP = {
    Code.CANCELLED: (499, "invalid_request_error", "request_cancelled"),
    Code.INVALID_ARGUMENT: (400, "invalid_request_error", None),
    Code.DEADLINE_EXCEEDED: (504, "timeout_error", "deadline_exceeded"),
    Code.NOT_FOUND: (404, "not_found_error", None),
    Code.ALREADY_EXISTS: (409, "conflict_error", None),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "rate_limit_exceeded"),
    Code.FAILED_PRECONDITION: (400, "invalid_request_error", None),
    Code.ABORTED: (409, "conflict_error", None),
    Code.UNIMPLEMENTED: (501, "invalid_request_error", "unimplemented"),
    Code.INTERNAL: (500, "server_error", None),
    Code.UNAVAILABLE: (503, "service_unavailable", None),
    Code.UNAUTHENTICATED: (401, "authentication_error", "invalid_api_key"),
}


@dataclass(frozen=True, slots=True)
class HttpError:
    """
    body: OpenAI's error object as JSON
    retry_after_s: whole seconds for the `retry-after` header, or None
    """

    status: int
    body: bytes
    retry_after_s: int | None


def to_http(error: Exception, request_id: str) -> HttpError:
    """Any error as the client gets it. One that is not a PagodaError is a defect: logged, and told without details."""
    if not isinstance(error, PagodaError):
        logger.error("request %s failed", request_id, exc_info=error)
        error = InternalError("The server had an error while processing your request; its log has the details.")
    status, kind, code = _HTTP[error.code]
    if error.reason != error.code.name:
        code = error.reason.lower()
    body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
    return HttpError(status, encode(body), _retry_after_s(error))


def _retry_after_s(error: PagodaError) -> int | None:
    if isinstance(error, ResourceExhaustedError):
        return max(1, math.ceil(error.retry_after_s))
    return _UNAVAILABLE_RETRY_S if error.code is Code.UNAVAILABLE else None
