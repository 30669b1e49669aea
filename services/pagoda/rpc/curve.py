"""CURVE on ZeroMQ sockets (RFC ZeroMQ 26): what passes is encrypted, and who connects must know the server's key.

A cell may have a key: who has it may connect to the cell's sockets, and nobody else. It is made with, for example,
`openssl rand -hex 32 > cell.key`, and given to every process of the cell. The key pair of the cell's servers comes from
it, and its public half is never told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

# Of Curve25519.
_KEY_BYTES = 32


@dataclass(frozen=True)
class KeyPair:
    """A server's: 40 characters of Z85 each."""

    public: bytes
    secret: bytes

    def protect_server(self, socket: zmq.Socket[Any]) -> None:
        """Before `socket` is bound: it takes no others than those who know the public key."""
        socket.curve_server = 1
        socket.curve_secretkey = self.secret


def new_key_pair() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


def protect_client(socket: zmq.Socket[Any], server: bytes) -> None:
    """Before `socket` is connected. server: its public key; the client's own only has to be somebody's"""
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = server


def read_cell_key(path: Path) -> KeyPair:
    """Raises ValueError, naming the file, for one that cannot be read or holds no key."""
    try:
        raw = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no key of a cell: {error}") from None
    if len(raw) != _KEY_BYTES:
        raise ValueError(f"{path} holds no key of a cell: {len(raw)} bytes in hexadecimal instead of {_KEY_BYTES}")
    secret = z85.encode(raw)
    return KeyPair(zmq.curve_public(secret), secret)
