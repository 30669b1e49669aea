"""Domain errors: what went wrong, how a client should read it, and what to do.

Every error that may reach a client is a `PagodaError`. It knows the canonical status code (the names of
`google.rpc.Code`), a machine-readable reason (UPPER_SNAKE, sent as `google.rpc.ErrorInfo`), and, where one
field of the request is to blame, that field's name. This module knows no transport: `pagoda.rpc.status`
turns these errors into gRPC statuses and `pagoda.tokenizer.openai.errors` into OpenAI's error JSON.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The canonical codes of `google.rpc.Code` that Pagoda uses; values are the wire values."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class PagodaError(Exception):
    """An error with a status code, a reason and a message that says the bound and what to do.

    message: a full sentence for people
    reason: UPPER_SNAKE, stable, for programs; defaults to the class's
    param: the request field at fault, in the client's own naming (`max_tokens`), or None
    """

    code: Code = Code.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.param = param


class InvalidArgumentError(PagodaError):
    """The request itself is wrong; sending it again unchanged will fail again."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFoundError(PagodaError):
    """What the request names does not exist here."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class ResourceExhaustedError(PagodaError):
    """A bounded queue is full; the client should retry after `retry_after_s` seconds."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self, message: str, *, reason: str | None = None, param: str | None = None, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, reason=reason, param=param)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(PagodaError):
    """The client's own time limit has passed."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class FailedPreconditionError(PagodaError):
    """The service is in a state in which the request cannot be served."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class UnimplementedError(PagodaError):
    """The request asks for something that this server does not do."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class UnavailableError(PagodaError):
    """The service, or one behind it, cannot answer now; retry."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"


class InternalError(PagodaError):
    """A defect on our side."""
