"""The key of a cell: who has it is let in, and who has not hears nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from pagoda.rpc.curve import KeyPair, protect_client, read_cell_key


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    path = tmp_path / "cell.key"
    path.write_text(secrets.token_hex(32) + "\n")
    return read_cell_key(path)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def arrives(context: zmq.Context[zmq.Socket[bytes]], server: KeyPair | None, client: KeyPair | None) -> bool:
    """Whether a message of the client's reaches the server."""
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    if server:
        server.protect_server(router)
    if client:
        protect_client(dealer, client.public)
    ends = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    try:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"hello")
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(ends, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(10_000))
            assert ready, "neither let in nor turned away"
            if router in ready:
                return router.recv_multipart()[1] == b"hello"
            if recv_monitor_message(ends)["event"] == zmq.EVENT_DISCONNECTED:
                return False
    finally:
        dealer.disable_monitor()
        for socket in (ends, dealer, router):
            socket.close(linger=0)


def test_who_has_the_key_is_let_in(context: zmq.Context[zmq.Socket[bytes]], key: KeyPair) -> None:
    assert arrives(context, key, key)


def test_nobody_else_is(context: zmq.Context[zmq.Socket[bytes]], key: KeyPair, tmp_path: Path) -> None:
    path = tmp_path / "other.key"
    path.write_text(secrets.token_hex(32))
    assert not arrives(context, key, None)
    assert not arrives(context, key, read_cell_key(path))


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "00" * 31])
def test_what_is_no_key_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cell.key"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        read_cell_key(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none"):
        read_cell_key(tmp_path / "none.key")
