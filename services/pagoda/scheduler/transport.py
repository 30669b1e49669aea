"""ZeroMQ ROUTER sockets on the event loop: bytes from and to named peers.

ZeroMQ signals a socket's file descriptor at its edges only, so whoever is woken reads until nothing is left, and looks
once more after sending, which may swallow an edge.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import cast

import zmq

from pagoda.errors import UnavailableError
from pagoda.rpc.curve import KeyPair

# Messages that may wait for one peer, each the outcome of one step. A peer that is this far behind is lost.
SEND_HIGH_WATER_MARK = 4096

# Read at most this many messages before the scheduler takes its step.
MAX_MESSAGES_PER_TURN = 1024


class PeerGoneError(UnavailableError):
    """The peer has disconnected, or does not read what it is sent."""

    reason = "PEER_GONE"


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Binds `socket` where only this user can reach it, and returns the endpoint that peers connect to.

    Raises OSError, with the socket closed, when `endpoint` cannot be bound.
    """
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise OSError(f"cannot bind {endpoint}: {error}") from error
    if endpoint.startswith("ipc://") and not endpoint.startswith("ipc://@"):
        os.chmod(endpoint.removeprefix("ipc://"), 0o600)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class Router:
    """One bound ROUTER socket. A peer's routing id is its session id."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, key: KeyPair | None = None) -> None:
        """key: that peers must have

        Raises OSError when `endpoint` cannot be bound.
        """
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        if key:
            key.protect_server(self._socket)
        self.endpoint = bind(self._socket, endpoint)

    def on_readable(self, callback: Callable[[], None]) -> None:
        """Calls `callback` on the running event loop when messages may have arrived."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), callback)

    @property
    def has_messages(self) -> bool:
        return bool(cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self) -> Iterator[tuple[str, list[bytes]]]:
        """(session id, frames) of the messages that have arrived."""
        for _ in range(MAX_MESSAGES_PER_TURN):
            # Asking first is several times cheaper than an exception.
            if not self.has_messages:
                return
            routing_id, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            yield routing_id.decode("latin-1"), frames

    def send(self, session_id: str, data: bytes) -> None:
        """Raises PeerGoneError; never waits."""
        try:
            self._socket.send_multipart([session_id.encode("latin-1"), data], zmq.NOBLOCK)
        except zmq.Again:
            raise PeerGoneError(f"the peer does not read; {SEND_HIGH_WATER_MARK} messages wait for it") from None
        except zmq.ZMQError as error:
            raise PeerGoneError(f"the peer is not connected: {error}") from error

    def close(self, linger_s: float) -> None:
        """linger_s: how long what was sent may take to leave, after this has returned."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close(linger=int(linger_s * 1000))
