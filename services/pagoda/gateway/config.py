"""Options of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagoda.gateway.address import Address
from pagoda.options import option

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class GatewayOptions:
    host: str = option("127.0.0.1", "IP address to listen on, or localhost; 0.0.0.0 for every interface.")
    port: int = option(8000, "TCP port for HTTP and gRPC.")
    tokenizers: tuple[str, ...] = option(
        ("127.0.0.1:50051",),
        "Tokenizer services to balance over: host:port (every address of a name is used) or unix:/path.",
        metavar="ADDRESS",
    )
    api_key: tuple[str, ...] = option((), "Accept only requests that bear one of these keys.", metavar="KEY")
    allowed_origins: tuple[str, ...] = option(
        ("*",),
        "Origins whose web pages may call the API (CORS); * for any, an empty one for none.",
        metavar="ORIGIN",
    )
    max_body_bytes: int = option(8 * 1024 * 1024, "Largest request body, in bytes; more is answered with 413.")
    max_requests: int = option(4096, "Requests in flight at the tokenizers; one more is answered with 429.")
    request_header_timeout_s: float = option(10.0, "Seconds a client may take to send its request's headers.")
    stream_idle_timeout_s: float = option(
        3600.0, "Seconds a request may go without a byte in either direction; 0 for no limit."
    )
    connect_timeout_s: float = option(0.5, "Seconds to connect to a tokenizer before another one is tried.")
    drain_s: float = option(30.0, "Seconds that running requests get to end when the gateway is told to stop.")
    workers: int = option(2, "Envoy's worker threads; one forwards about 40,000 events per second.")
    access_log: str | None = option(None, "File for one JSON line per request; /dev/stdout works too.", metavar="FILE")
    admin: str | None = option(
        None,
        "Envoy's admin interface: 127.0.0.1:port or unix:/path. It can stop the gateway, so it must be local. "
        "Default: a unix socket in a private folder.",
        metavar="ADDRESS",
    )
    log_level: str = option("info", "Least severe messages to log.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError(f"port is {self.port}; it must be between 1 and 65535")
        if self.listen.is_name:
            raise ValueError(f"host is {self.host!r}; it must be an IP address of this machine, or localhost")
        if not self.tokenizers:
            raise ValueError("tokenizers is empty; name at least one tokenizer's address")
        addresses = [Address.parse(each) for each in self.tokenizers]
        if any(each.is_name for each in addresses) and any(each.is_unix for each in addresses):
            raise ValueError("tokenizers mixes host names with unix sockets; use IP addresses beside unix sockets")
        if any(not key or not key.isascii() or not key.isprintable() or set(key) & set(" ,") for key in self.api_key):
            raise ValueError("an API key must be printable ASCII without spaces and commas")
        if self.admin is not None and not Address.parse(self.admin).is_local:
            raise ValueError(f"admin is {self.admin}; it must be a loopback address or a unix socket")
        _check_range(self, 1, "max_body_bytes", "max_requests", "workers")
        _check_range(self, 0.001, "request_header_timeout_s", "connect_timeout_s")
        _check_range(self, 0, "stream_idle_timeout_s", "drain_s")

    @property
    def listen(self) -> Address:
        return Address(host="127.0.0.1" if self.host == "localhost" else self.host, port=self.port)


def _check_range(options: Any, minimum: float, *names: str) -> None:
    for name in names:
        if getattr(options, name) < minimum:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {minimum}")
