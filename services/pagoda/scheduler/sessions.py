"""Registered peers: each is one open gRPC stream and one ZeroMQ routing id.

A session begins with the registration and is connected once the peer's first ZeroMQ message has come. It ends with the
stream, with silence, or with a fault on either channel, whichever is first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from pagoda.errors import PagodaError, UnavailableError
from pagoda.scheduler.core.spec import LaneSpec
from pagoda.v1 import scheduler_pb2

# A stream that breaks looks for a moment like one whose peer has said all it wanted to say.
_GOODBYE_S = 0.05


class Session:
    """One executor or tokenizer."""

    def __init__(self, kind: str, name: str) -> None:
        # The random part keeps a peer from speaking for another one by accident or guess.
        self.id = f"{kind}-{secrets.token_hex(8)}"
        self.name = name
        self.said_goodbye = False
        """The peer ended its side of the stream in good order."""
        self._error: PagodaError | None = None
        self._outbox: asyncio.Queue[scheduler_pb2.CellStatus | None] = asyncio.Queue()

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} ({self.id})"

    def close(self, error: PagodaError | None = None) -> None:
        """Ends `statuses`, and with it the stream. error: what the peer is told; None: nothing was wrong."""
        self._error = self._error or error
        self._outbox.put_nowait(None)

    def publish(self, status: scheduler_pb2.CellStatus) -> None:
        self._outbox.put_nowait(status)

    async def statuses(self) -> AsyncIterator[scheduler_pb2.CellStatus]:
        """What was published, until the session is closed. Raises the error it was closed with."""
        while (status := await self._outbox.get()) is not None:
            yield status
        if self._error:
            raise self._error

    @contextmanager
    def kept_alive_by(self, heartbeats: AsyncIterator[object], timeout_s: float) -> Iterator[None]:
        """Inside the block the session is closed when `heartbeats` end or are silent for `timeout_s`."""
        reading = asyncio.create_task(self._read(heartbeats, timeout_s))
        try:
            yield
        finally:
            reading.cancel()

    async def _read(self, heartbeats: AsyncIterator[object], timeout_s: float) -> None:
        try:
            while True:
                async with asyncio.timeout(timeout_s):
                    await anext(heartbeats)
        except TimeoutError:
            self.close(UnavailableError(f"no heartbeat for {timeout_s:g} s; register again", reason="HEARTBEAT_LOST"))
        except StopAsyncIteration:
            await asyncio.sleep(_GOODBYE_S)
            self.said_goodbye = True
            self.close()


class ExecutorSession(Session):
    def __init__(self, spec: LaneSpec, registration: scheduler_pb2.ExecutorRegistration) -> None:
        super().__init__("executor", spec.name)
        self.spec = spec
        self.registration = registration
        self.transfers = registration.transfers
        """As it counted last."""


class TokenizerSession(Session):
    def __init__(self, name: str) -> None:
        super().__init__("tokenizer", name)
