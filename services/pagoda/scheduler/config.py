"""Options of the scheduler service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pagoda.options import option
from pagoda.rpc.hosts import LOOPBACK, WILDCARDS
from pagoda.scheduler.core.policies import POLICIES, check_policy


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
    kv_events_endpoint: str | None = option(
        None,
        "ZeroMQ endpoint to publish on which KV blocks each executor holds: tcp on loopback, or ipc://path. "
        "Nothing is published if not given.",
    )
    cell_key_file: Path | None = option(
        None,
        "File with the cell's key, 64 hexadecimal digits. ZeroMQ endpoints are then encrypted, for those who have the "
        "key, and may be on addresses that other hosts reach.",
    )
    max_num_waiting: int = option(1024, "Requests that may wait for an executor; more are refused.")
    enable_prefix_caching: bool = option(True, "Keep the KV blocks of ended requests for later ones that begin alike.")
    scheduling_policy: str = option(
        "priority",
        "Whose turn it is: by arrival (fcfs), by priority and then arrival, or equal service for all clients (fair).",
        choices=POLICIES,
    )
    client_weights: str = option(
        "", 'With fair: shares of clients, as in "alice=2,bob=0.5"; 1 for those not named.', metavar="ID=WEIGHT,..."
    )
    tie_window_s: float = option(
        0.0, "With fcfs and priority: requests that arrive within so many seconds go shortest prompt first; 0 = off."
    )
    inter_token_target_ms: float = option(
        250.0, "Prompts get no more tokens per step than let running requests have a token this often; 0 = no target."
    )
    max_local_prefill_tokens: int = option(
        128,
        "With executors of role prefill: executors that decode compute prompts up to this length themselves; what is "
        "cached does not count.",
    )
    transfer_timeout_s: float = option(
        10.0, "A request whose KV blocks have not reached its next executor after so many seconds is computed again."
    )
    max_plans_in_flight: int = option(
        0,
        "Steps an executor is sent before it has answered the first of them; 0 = two while steps are short, else one.",
    )
    heartbeat_interval_s: float = option(1.0, "Executors and tokenizers send a heartbeat this often, in seconds.")
    heartbeat_timeout_s: float = option(10.0, "One that is silent for this many seconds is dropped.")
    step_timeout_s: float = option(600.0, "An executor that works on one step for this many seconds is dropped.")
    no_executor_timeout_s: float = option(60.0, "Requests end with an error after this many seconds without executors.")
    otlp_traces_endpoint: str | None = option(
        None,
        "Where to send OpenTelemetry traces, by gRPC, as in http://127.0.0.1:4317; needs pagoda[otel]. Default: what "
        "OpenTelemetry's own variables say, else nowhere.",
    )
    log_level: str = option("info", "Least severe log lines to write.", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        has_key = self.cell_key_file is not None
        check_endpoint("executor_endpoint", self.executor_endpoint, encrypted=has_key)
        check_endpoint("tokenizer_endpoint", self.tokenizer_endpoint, encrypted=has_key)
        if self.kv_events_endpoint is not None:
            check_endpoint("kv_events_endpoint", self.kv_events_endpoint, encrypted=has_key, is_told=False)
            if not self.enable_prefix_caching:
                raise ValueError("kv_events_endpoint needs enable_prefix_caching: without it no block can be found")
        check_policy(
            self.scheduling_policy,
            max_num_waiting=self.max_num_waiting,
            weights=self.client_weights,
            tie_window_s=self.tie_window_s,
        )
        for name in ("max_plans_in_flight", "max_local_prefill_tokens", "inter_token_target_ms"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("heartbeat_interval_s", "step_timeout_s", "transfer_timeout_s", "no_executor_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if not self.heartbeat_timeout_s > self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat_timeout_s ({self.heartbeat_timeout_s}) must be more than heartbeat_interval_s "
                f"({self.heartbeat_interval_s})"
            )


def check_endpoint(name: str, endpoint: str, *, encrypted: bool, is_told: bool = True) -> None:
    """Raises ValueError for what is no ZeroMQ endpoint, and for one that other hosts could reach without encryption.

    is_told: peers are told it as it is, so that it must be one they can connect to
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc" and rest:
        return
    if scheme != "tcp" or not rest:
        raise ValueError(f"{name} must be tcp://host:port or ipc://path, got {endpoint!r}")
    # "*" is ZeroMQ's word for any free port.
    host = urlsplit(f"tcp://{rest.removesuffix(':*')}").hostname
    if host not in LOOPBACK and not encrypted:
        raise ValueError(
            f"{name} {endpoint!r} would be open to other hosts without authentication; "
            "bind it to 127.0.0.1, use ipc://path, or give the cell a key (cell_key_file)"
        )
    if is_told and host in WILDCARDS:
        raise ValueError(f"{name} {endpoint!r} is no address that a peer could connect to; name one of this host's")
