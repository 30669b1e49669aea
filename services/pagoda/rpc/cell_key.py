"""The key of a cell: who has it may connect to the cell's ZeroMQ sockets, and nobody else can read what passes there.

Made with, for example, `openssl rand -hex 32 > cell.key`, and given to every process of the cell. From it comes a CURVE
key pair (RFC ZeroMQ 26): servers have it, and clients need its public half, which is never told.
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
class CellKey:
    """A CURVE key pair: 40 characters of Z85 each."""

    public: bytes
    secret: bytes

    def protect_server(self, socket: zmq.Socket[Any]) -> None:
        """Before `socket` is bound: it takes no others than those who have the key."""
        socket.curve_server = 1
        socket.curve_secretkey = self.secret

    def protect_client(self, socket: zmq.Socket[Any]) -> None:
        """Before `socket` is connected."""
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = self.public


def read_cell_key(path: Path) -> CellKey:
    """Raises ValueError, naming the file, for one that cannot be read or holds no key."""
    try:
        raw = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no key of a cell: {error}") from None
    if len(raw) != _KEY_BYTES:
        raise ValueError(f"{path} holds no key of a cell: {len(raw)} bytes in hexadecimal instead of {_KEY_BYTES}")
    secret = z85.encode(raw)
    return CellKey(zmq.curve_public(secret), secret)
