"""The two things the gateway asks of Envoy's admin interface. Calls block, for a second at most."""

from __future__ import annotations

import http.client
import socket

from pagoda.gateway.address import Address

_TIMEOUT_S = 1.0


class Admin:
    def __init__(self, address: Address) -> None:
        self._address = address

    def drain(self) -> None:
        """Answers carry `connection: close` from now on, and the port is closed shortly after."""
        self._call("POST", "/drain_listeners?graceful")

    def num_active_requests(self) -> int:
        # "http.http.downstream_rq_active: 3"
        stats = self._call("GET", r"/stats?filter=^http\.http\.downstream_rq_active$")
        return int(stats.rpartition(":")[2])

    def _call(self, method: str, path: str) -> str:
        """Raises OSError or http.client.HTTPException where Envoy does not answer."""
        connection = _Connection(self._address)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over TCP or a unix socket."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.host or "localhost", address.port or None, timeout=_TIMEOUT_S)
        self._path = address.path

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)
