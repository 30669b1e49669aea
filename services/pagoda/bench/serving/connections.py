"""HTTP/1.1 requests over kept connections: as little work per received segment as can be.

The bytes of an answer go to who asked as soon as they are read from the socket, with the time of that reading.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from time import perf_counter
from typing import Protocol, cast
from urllib.parse import urlsplit

from pagoda.bench.serving.response_reader import ProtocolError, ResponseReader


class Receiver(Protocol):
    """Whom an answer is for."""

    def receive(self, status: int, data: bytes, now: float) -> None:
        """Part of the body of an answer with `status`, read at `now` (`time.perf_counter`)."""


class Connections:
    """To one server; an idle one is used again."""

    def __init__(self, base_url: str, *, insecure: bool = False) -> None:
        """Raises ValueError for what is no http or https URL. insecure: any certificate will do"""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url is {base_url!r}; it must be like http://127.0.0.1:8000")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._authority = url.netloc.rpartition("@")[2]
        self._prefix = url.path.rstrip("/")
        self._tls = _tls(insecure) if url.scheme == "https" else None
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], receiver: Receiver) -> int:
        """Sends a JSON `body`; returns the status once the answer is complete.

        Raises OSError where the server cannot be reached, ProtocolError where its answer is cut short.
        """
        return await self._request("POST", path, body, {"content-type": "application/json", **headers}, receiver)

    async def get(self, path: str, headers: Mapping[str, str], receiver: Receiver) -> int:
        """As `post`, without a body."""
        return await self._request("GET", path, b"", headers, receiver)

    def close(self) -> None:
        """Those that are idle; nothing may be under way."""
        for connection in list(self._idle):
            connection.close()

    async def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], receiver: Receiver
    ) -> int:
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"host: {self._authority}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        while self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange(kept, data, receiver)
            except ProtocolError:
                # The server had closed it, as it may, and the request has not been looked at.
                if kept.num_received:
                    raise
        return await self._exchange(await self._connect(), data, receiver)

    async def _exchange(self, connection: _Connection, data: bytes, receiver: Receiver) -> int:
        reader = await connection.exchange(data, receiver)
        if reader.keeps_connection and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return reader.status

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._forget), self._host, self._port, ssl=self._tls
        )
        return connection

    def _forget(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One request at a time.

    num_received: bytes of the answer so far
    """

    def __init__(self, on_lost: _OnLost) -> None:
        self.num_received = 0
        self.is_open = True
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._reader = ResponseReader()
        self._receiver: Receiver | None = None
        self._done: asyncio.Future[ResponseReader] | None = None

    async def exchange(self, data: bytes, receiver: Receiver) -> ResponseReader:
        """Sends a request and hands its answer to `receiver`; a caller that is cancelled closes the connection."""
        self.num_received = 0
        self._reader, self._receiver = ResponseReader(), receiver
        self._done = asyncio.get_running_loop().create_future()
        if self.is_open:
            self._transport.write(data)
        else:
            self._finish(ProtocolError("the server has closed the connection"))
        try:
            return await self._done
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._done = self._receiver = None

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but name.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self.num_received += len(data)
        if self._receiver is None:
            # Nobody has asked for anything: a server that gives up an idle connection, in words.
            self._transport.abort()
            return
        try:
            body = self._reader.feed(data)
        except ProtocolError as error:
            self._finish(error)
            return
        if body:
            self._receiver.receive(self._reader.status, body, now)
        if self._reader.is_complete:
            self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._on_lost(self)
        try:
            self._reader.end()
        except ProtocolError as end:
            self._finish(end if error is None else ProtocolError(f"the connection was lost: {error}"))
        else:
            self._finish(None)

    def _finish(self, error: ProtocolError | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(self._reader)
        else:
            self._done.set_exception(error)


class _OnLost(Protocol):
    def __call__(self, connection: _Connection, /) -> None: ...


def _tls(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
