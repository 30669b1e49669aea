"""Addresses as flags spell them: "host:port" or "unix:/path"."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """Either a path of a unix socket, or a host and a port."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError for what is neither "host:port", "[ipv6]:port" nor "unix:/path"."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/"):
                raise ValueError(f"{text!r} is not an address: the path of a unix socket must be absolute")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not an address: expected host:port or unix:/path")
        return cls(host=host, port=int(port))

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_name(self) -> bool:
        """The host is a name that has to be resolved."""
        return not self.is_unix and not _is_ip(self.host)

    @property
    def is_local(self) -> bool:
        """Only processes on this machine can reach it."""
        return self.is_unix or (_is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def unix_address(path: Path) -> Address:
    return Address(path=str(path))


def check_port(address: Address) -> None:
    """Raises OSError, saying what to do, if nobody can listen there."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy does: connections that are still closing down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"cannot listen on {address}: {reason}; choose another with --port") from error


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
