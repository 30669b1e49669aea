"""Addresses of a receiver: how they are written, and which of them can be of use from here.

    cuda://<host id>/<name of a socket>?session=<hex>&key=<hex>
    shm://<host id>/<name of a socket>?session=<hex>&key=<hex>
    nixl://<host>:<port>?session=<hex>&key=<hex>
    tcp://<host>:<port>?session=<hex>&key=<hex>

`session` is the word by which the receiver knows those who were told its address. `key` is its CURVE public key, if it
has one. A receiver names its best endpoint first.
"""

from __future__ import annotations

import binascii
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import zmq.utils.z85

from pagoda.rpc.hosts import LOOPBACK, WILDCARDS

SCHEMES = ("cuda", "shm", "nixl", "tcp")
# Between processes of one host.
_LOCAL = ("cuda", "shm")


@dataclass(frozen=True)
class Endpoint:
    """One address, taken apart."""

    scheme: str
    """How blocks get to the receiver."""

    address: str
    session: str
    curve_key: bytes | None
    """The receiver's public key, 40 characters of Z85."""

    @property
    def socket(self) -> str:
        """What ZeroMQ connects to."""
        return f"ipc://@{self.address.partition('/')[2]}" if self.scheme in _LOCAL else f"tcp://{self.address}"

    @property
    def is_elsewhere(self) -> bool:
        """On another host, where it must be on this one."""
        return self.scheme in _LOCAL and self.address.partition("/")[0] != host_id()

    @property
    def is_local(self) -> bool:
        """On this host, if it can be reached at all."""
        return self.scheme in _LOCAL or urlsplit(f"//{self.address}").hostname in LOOPBACK

    def __str__(self) -> str:
        key = f"&key={zmq.utils.z85.decode(self.curve_key).hex()}" if self.curve_key else ""
        return f"{self.scheme}://{self.address}?session={self.session}{key}"


def parse_endpoint(text: str) -> Endpoint | None:
    """None for a scheme that is not known here. Raises ValueError for what is no endpoint."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        return None
    query = parse_qs(parts.query)
    session, key = query.get("session", [""])[0], query.get("key", [""])[0]
    name = parts.path.removeprefix("/")
    if not session or not parts.netloc or bool(name) != (parts.scheme in _LOCAL):
        raise ValueError(f"{text!r} is not an endpoint of a receiver")
    try:
        curve_key = zmq.utils.z85.encode(bytes.fromhex(key)) if key else None
    except (ValueError, binascii.Error):
        raise ValueError(f"{text!r} has a key that is not hexadecimal") from None
    return Endpoint(parts.scheme, parts.netloc + parts.path, session, curve_key)


def usable(endpoints: Sequence[str], schemes: Container[str]) -> list[Endpoint]:
    """Those that may work from this host, in their order. Raises ValueError for what is no endpoint.

    schemes: that the sender knows how to use
    """
    parsed = [endpoint for endpoint in map(parse_endpoint, endpoints) if endpoint]
    return [each for each in parsed if each.scheme in schemes and not each.is_elsewhere]


def host_id() -> str:
    """The same for all processes that can reach each other's abstract sockets, and for no others."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}-{Path('/proc/self/ns/net').stat().st_ino}"


def check_listen(listen: str, *, encrypted: bool) -> None:
    """Raises ValueError unless `listen` is a TCP address that only those reach who should."""
    parts = urlsplit(listen.removesuffix(":*"))
    if parts.scheme != "tcp" or not parts.hostname or parts.path or (not listen.endswith(":*") and parts.port is None):
        raise ValueError(f"KV blocks can be received at tcp://host:port, not at {listen!r}")
    if parts.hostname not in LOOPBACK and not encrypted:
        raise ValueError(
            f"{listen!r} would be open to other hosts without encryption; bind it to 127.0.0.1, or give it CURVE keys"
        )
    if parts.hostname in WILDCARDS:
        raise ValueError(f"{listen!r} is no address that another host could connect to; name one of this host's")
