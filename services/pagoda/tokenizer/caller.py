"""Who calls, when, and until when; as the call's metadata tells."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import grpc

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer.limits import MAX_LABEL_CHARS

TIMEOUT_HEADER = "x-request-timeout-ms"

_MILLISECONDS = re.compile("[1-9][0-9]{0,8}")
# Version 00 of https://www.w3.org/TR/trace-context, the only one there is.
_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Caller:
    """
    request_id: `x-request-id`, or a random one
    client_id: `x-client-id`, which the gateway derives from the API key; "" without keys
    timeout_ms: `x-request-timeout-ms` as it was sent; None if it was not
    call_timeout_s: what the gRPC call itself has left; None: as long as it takes
    traceparent: W3C trace context that this is a part of; "" if none was sent
    arrived_at: on the clock of `time.perf_counter`
    """

    request_id: str
    client_id: str
    timeout_ms: str | None = None
    call_timeout_s: float | None = None
    traceparent: str = ""
    arrived_at: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """The caller of an RPC. An id that is not a short printable word is replaced."""
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        timeout_ms = metadata.get(TIMEOUT_HEADER)
        return cls(
            request_id=_label(metadata.get("x-request-id")) or uuid.uuid4().hex,
            client_id=_label(metadata.get("x-client-id")),
            timeout_ms=None if timeout_ms is None else str(timeout_ms),
            call_timeout_s=context.time_remaining(),
            traceparent=_traceparent(metadata.get("traceparent")),
        )

    def deadline(self) -> float | None:
        """When the answer must be complete, on the clock of `arrived_at`; None: whenever it is.

        Raises InvalidArgumentError for a timeout that is none.
        """
        timeouts_s = [each for each in (self._asked_timeout_s(), self.call_timeout_s) if each is not None]
        return self.arrived_at + min(timeouts_s) if timeouts_s else None

    def cache_salt(self, salt: str = "") -> bytes:
        """What separates this caller's cached prefixes from others'; empty where nothing does.

        salt: one of the caller's own choice, which divides its prefixes further
        """
        return f"{self.client_id}\0{salt}".encode() if self.client_id or salt else b""

    def _asked_timeout_s(self) -> float | None:
        if self.timeout_ms is None:
            return None
        if not _MILLISECONDS.fullmatch(self.timeout_ms):
            raise InvalidArgumentError(
                f"Invalid '{TIMEOUT_HEADER}': expected a whole number of milliseconds from 1 to 999999999.",
                reason="INVALID_VALUE",
                param=TIMEOUT_HEADER,
            )
        return int(self.timeout_ms) / 1000


def _label(value: str | bytes | None) -> str:
    if isinstance(value, str) and len(value) <= MAX_LABEL_CHARS and value.isascii() and value.isprintable():
        return value
    return ""


def _traceparent(value: str | bytes | None) -> str:
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""
