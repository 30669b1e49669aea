"""Options of the scheduler service."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from pagoda.options import option

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class SchedulerOptions:
    """Raises ValueError for values that cannot work together or would open an unprotected port."""

    listen: str = option("127.0.0.1:50052", 'gRPC address: "host:port", or "unix:/path".')
    executor_endpoint: str = option(
        "tcp://127.0.0.1:*", "ZeroMQ endpoint that executors connect to: tcp on loopback, or ipc://path."
    )
    tokenizer_endpoint: str = option(
        "tcp://127.0.0.1:*", "ZeroMQ endpoint that tokenizers connect to: tcp on loopback, or ipc://path."
    )
    max_num_waiting: int = option(1024, "Requests that may wait for an executor; more are refused.")
    enable_prefix_caching: bool = option(True, "Keep the KV blocks of ended requests for later ones that begin alike.")
    max_plans_in_flight: int = option(1, "Steps an executor is sent before it has answered the first of them.")
    heartbeat_interval_s: float = option(1.0, "Executors and tokenizers send a heartbeat this often, in seconds.")
    heartbeat_timeout_s: float = option(10.0, "One that is silent for this many seconds is dropped.")
    step_timeout_s: float = option(600.0, "An executor that works on one step for this many seconds is dropped.")
    no_executor_timeout_s: float = option(60.0, "Requests end with an error after this many seconds without executors.")
    log_level: str = option("info", "Least severe log lines to write.", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        check_endpoint("executor_endpoint", self.executor_endpoint)
        check_endpoint("tokenizer_endpoint", self.tokenizer_endpoint)
        for name in ("max_num_waiting", "max_plans_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("heartbeat_interval_s", "step_timeout_s", "no_executor_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if not self.heartbeat_timeout_s > self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat_timeout_s ({self.heartbeat_timeout_s}) must be more than heartbeat_interval_s "
                f"({self.heartbeat_interval_s})"
            )


def check_endpoint(name: str, endpoint: str) -> None:
    """Raises ValueError for a ZeroMQ endpoint that other hosts could reach: peers are not authenticated."""
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc" and rest:
        return
    if scheme != "tcp" or not rest:
        raise ValueError(f"{name} must be tcp://host:port or ipc://path, got {endpoint!r}")
    # "*" is ZeroMQ's word for any free port.
    host = urlsplit(f"tcp://{rest.removesuffix(':*')}").hostname
    if host not in _LOOPBACK:
        raise ValueError(
            f"{name} {endpoint!r} would be open to other hosts without authentication; "
            "bind it to 127.0.0.1, or use ipc://path"
        )
