"""What arrives for a group of requests, as one asynchronous stream.

A group is the n completions of a client's request: its reader wakes once per step, however many of them have new
tokens. What has not been read stays in each request's list of tokens, which is kept anyway to hand the request to
another scheduler; its bound is the request's max_tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from pagoda.errors import DeadlineExceededError, PagodaError
from pagoda.rpc.arrays import pack_u32
from pagoda.v1.common_pb2 import SamplingParams
from pagoda.v1.step_pb2 import FinishedRequest, NewRequest

# The scheduler ends what is late. If it is away, or slow to notice, that is done here, this much later.
_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One completion as the scheduler wants it.

    request_id: what logs call it
    prompt: u32[], packed once for all completions of it
    sampling: with its seed
    traceparent: W3C trace context that it is a part of; may be empty
    """

    request_id: str
    prompt: bytes
    sampling: SamplingParams
    priority: int = 0
    cache_salt: bytes = b""
    client_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came for one request since the last time.

    index: which request of the group
    token_ids: new tokens, in order
    finished: how it ended, after these tokens; None while it goes on
    num_cached_tokens: of the prompt; None if the request never ran
    """

    index: int
    token_ids: list[int]
    finished: FinishedRequest | None
    num_cached_tokens: int | None


class Requests(Protocol):
    """Where a stream's requests run."""

    def start(self, request: TokenRequest, stream: TokenStream) -> CellRequest: ...

    def abort(self, entry: CellRequest) -> None: ...


@dataclass(slots=True, eq=False)
class CellRequest:
    """A request that has not ended.

    token_ids: [0, num_read) have been given to the reader, [num_read, n) wait for it
    retry_until: loop time until which a refusal is not an end, for a request handed to another scheduler
    """

    key: int
    request: TokenRequest
    stream: TokenStream
    token_ids: list[int] = field(default_factory=list)
    num_read: int = 0
    finished: FinishedRequest | None = None
    num_cached_tokens: int | None = None
    retry_until: float = 0.0

    def to_message(self) -> NewRequest:
        """The request with the tokens it has so far."""
        request = self.request
        return NewRequest(
            key=self.key,
            request_id=request.request_id,
            token_ids=request.prompt + pack_u32(self.token_ids),
            num_prompt_tokens=len(request.prompt) // 4,
            sampling=request.sampling,
            priority=request.priority,
            cache_salt=request.cache_salt,
            client_id=request.client_id,
            timeout_s=self.stream.seconds_left(),
            traceparent=request.traceparent,
        )

    def admitted(self, num_cached_tokens: int) -> None:
        # A scheduler that took the request over may tell it again; what counts is what the prompt found at first.
        if self.num_cached_tokens is None:
            self.num_cached_tokens = num_cached_tokens

    def push(self, token_ids: list[int]) -> None:
        self.token_ids += token_ids
        self.stream.notify(self)

    def finish(self, finished: FinishedRequest) -> None:
        self.finished = finished
        self.stream.notify(self)

    def take(self) -> tuple[list[int], FinishedRequest | None]:
        """What has come since the last call."""
        token_ids = self.token_ids[self.num_read :]
        self.num_read = len(self.token_ids)
        return token_ids, self.finished


class TokenStream:
    """Async context manager and iterator over lists of arrivals, at most one per request in each.

    Ends when every request has ended; raises PagodaError when one of them failed, after what had come before.
    """

    def __init__(self, requests: Sequence[TokenRequest], cell: Requests, deadline: float | None = None) -> None:
        """deadline: of all requests, on the clock of `time.perf_counter`; None: they take as long as they take"""
        self._requests = requests
        self._cell = cell
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None
        self._entries: list[CellRequest] = []
        self._index: dict[int, int] = {}
        self._changed: dict[int, CellRequest] = {}
        self._error: PagodaError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._entries = [self._cell.start(request, self) for request in self._requests]
        self._index = {entry.key: index for index, entry in enumerate(self._entries)}
        if (seconds_left := self.seconds_left()) is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds_left + _GRACE_S, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for index in list(self._index.values()):
            self.abort(index)

    def seconds_left(self) -> float | None:
        """Until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.perf_counter())

    def abort(self, index: int) -> None:
        """Ends one request for good: nothing more comes for it. No-op if it has ended."""
        entry = self._entries[index]
        self._index.pop(entry.key, None)
        self._changed.pop(entry.key, None)
        self._cell.abort(entry)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Arrival]:
        while not self._changed:
            if self._error is not None:
                raise self._error
            if not self._index:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        changed, self._changed = self._changed, {}
        return [self._arrival(entry) for entry in changed.values()]

    def _arrival(self, entry: CellRequest) -> Arrival:
        index = self._index[entry.key]
        token_ids, finished = entry.take()
        if finished is not None:
            del self._index[entry.key]
        return Arrival(index, token_ids, finished, entry.num_cached_tokens)

    # What the cell reports.

    def notify(self, entry: CellRequest) -> None:
        """`entry` has something new."""
        self._changed[entry.key] = entry
        self._wake()

    def fail(self, error: PagodaError) -> None:
        """One of the requests failed, and with it the stream."""
        self._error = self._error or error
        self._wake()

    def _expire(self) -> None:
        if any(self._entries[index].finished is None for index in self._index.values()):
            self.fail(DeadlineExceededError("the request was not done within its time limit"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
