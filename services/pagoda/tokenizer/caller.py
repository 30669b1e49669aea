"""Who calls, and when; as the gateway's metadata tells."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import grpc

from pagoda.tokenizer.limits import MAX_LABEL_CHARS


@dataclass(frozen=True, slots=True)
class Caller:
    """
    request_id: `x-request-id`, or a random one
    client_id: `x-client-id`, which the gateway derives from the API key; "" without keys
    arrived_at: on the clock of `time.perf_counter`
    """

    request_id: str
    client_id: str
    arrived_at: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """The caller of an RPC. An id that is not a short printable word is replaced."""
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        return cls(
            request_id=_label(metadata.get("x-request-id")) or uuid.uuid4().hex,
            client_id=_label(metadata.get("x-client-id")),
        )

    def cache_salt(self, salt: str = "") -> bytes:
        """What separates this caller's cached prefixes from others'; empty where nothing does.

        salt: one of the caller's own choice, which divides its prefixes further
        """
        return f"{self.client_id}\0{salt}".encode() if self.client_id or salt else b""


def _label(value: str | bytes | None) -> str:
    if isinstance(value, str) and len(value) <= MAX_LABEL_CHARS and value.isascii() and value.isprintable():
        return value
    return ""
