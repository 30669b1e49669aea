"""ROUTER sockets: peers that are gone or do not read, endpoints that cannot be bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pagoda.scheduler import transport
from pagoda.scheduler.transport import PeerGoneError, Router


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def connect(context: zmq.Context[zmq.Socket[bytes]], router: Router, name: str) -> zmq.Socket[bytes]:
    peer = context.socket(zmq.DEALER)
    peer.setsockopt_string(zmq.ROUTING_ID, name)
    peer.setsockopt(zmq.RCVHWM, 1)
    peer.connect(router.endpoint)
    peer.send(b"hello")
    return peer


async def receive(router: Router) -> list[tuple[str, list[bytes]]]:
    readable = asyncio.Event()
    router.on_readable(readable.set)
    while not (messages := list(router.receive())):
        await asyncio.wait_for(readable.wait(), 5)
        readable.clear()
    return messages


async def test_messages_come_and_go_by_name(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    router = Router(context, f"ipc://{tmp_path}/socket")
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    peer = connect(context, router, "executor-1")
    assert await receive(router) == [("executor-1", [b"hello"])]
    assert not router.has_messages
    router.send("executor-1", b"plan")
    assert peer.recv() == b"plan"
    router.close(linger_s=0)


async def test_a_peer_that_is_not_there_is_gone(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router = Router(context, "tcp://127.0.0.1:*")
    with pytest.raises(PeerGoneError, match="not connected"):
        router.send("nobody", b"plan")


async def test_a_peer_that_does_not_read_is_gone(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "SEND_HIGH_WATER_MARK", 2)
    router = Router(context, "tcp://127.0.0.1:*")
    peer = connect(context, router, "slow")
    await receive(router)

    def flood() -> None:
        for _ in range(1000):
            router.send("slow", bytes(1 << 20))

    with pytest.raises(PeerGoneError, match="does not read"):
        flood()
    peer.close(linger=0)
    router.close(linger_s=0)


async def test_an_endpoint_that_cannot_be_bound_is_an_os_error(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with pytest.raises(OSError, match="cannot bind ipc:///nonexistent/folder/socket"):
        Router(context, "ipc:///nonexistent/folder/socket")
