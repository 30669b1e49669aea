"""How addresses are written, and which of them are refused."""

from __future__ import annotations

import pytest
import zmq

from pagoda.executor.transfer.endpoints import Endpoint, check_listen, host_id, parse_endpoint, usable

KEY, _ = zmq.curve_keypair()


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("scheme", "address", "socket"),
    [
        ("shm", "some-host/pagoda-kv-1-ab", "ipc://@pagoda-kv-1-ab"),
        ("cuda", "some-host/pagoda-kv-1-ab", "ipc://@pagoda-kv-1-ab"),
        ("tcp", "10.0.0.1:4711", "tcp://10.0.0.1:4711"),
        ("nixl", "10.0.0.1:4711", "tcp://10.0.0.1:4711"),
        ("tcp", "[::1]:4711", "tcp://[::1]:4711"),
    ],
)
def test_what_is_written_is_read(scheme: str, address: str, socket: str, key: bytes | None) -> None:
    endpoint = Endpoint(scheme, address, "abc123", key)
    assert parse_endpoint(str(endpoint)) == endpoint
    assert endpoint.socket == socket


def test_what_stays_on_this_host() -> None:
    local = {"shm": "host/name", "cuda": "host/name", "tcp": "127.0.0.1:5", "nixl": "[::1]:5"}
    assert all(Endpoint(scheme, address, "1", None).is_local for scheme, address in local.items())
    assert not any(Endpoint("tcp", address, "1", None).is_local for address in ("10.0.0.1:5", "[fe80::1]:5"))


@pytest.mark.parametrize("scheme", ["shm", "cuda"])
def test_shared_memory_is_for_this_host(scheme: str) -> None:
    here, there = f"{scheme}://{host_id()}/name?session=1", f"{scheme}://elsewhere/name?session=1"
    tcp, later = "tcp://10.0.0.1:5?session=1", "rdma://10.0.0.1?session=1"
    assert [str(each) for each in usable([there, later, here, tcp], ["tcp", scheme])] == [here, tcp]
    assert [str(each) for each in usable([there, later, here, tcp], ["tcp"])] == [tcp]


@pytest.mark.parametrize(
    "text",
    [
        "tcp://10.0.0.1:5",
        "tcp://?session=1",
        "tcp://h:1/path?session=1",
        "shm://host?session=1",
        "cuda://host?session=1",
        "tcp://h:1?session=1&key=zz",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|key"):
        parse_endpoint(text)


def test_where_to_listen() -> None:
    for listen in ("tcp://127.0.0.1:*", "tcp://localhost:4711", "tcp://[::1]:*"):
        check_listen(listen, encrypted=False)
    check_listen("tcp://10.0.0.1:4711", encrypted=True)
    with pytest.raises(ValueError, match="without encryption"):
        check_listen("tcp://10.0.0.1:*", encrypted=False)
    with pytest.raises(ValueError, match="no address that another host"):
        check_listen("tcp://0.0.0.0:4711", encrypted=True)
    for listen in ("ipc:///some/path", "tcp://127.0.0.1", "127.0.0.1:5", "tcp://127.0.0.1:5/x"):
        with pytest.raises(ValueError, match="tcp://host:port"):
            check_listen(listen, encrypted=True)
