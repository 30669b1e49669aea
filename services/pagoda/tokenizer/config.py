"""Options of the tokenizer service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagoda.options import option

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class TokenizerOptions:
    model: Path | None = option(None, "Checkpoint folder with the tokenizer's files.", positional=True)
    listen: str = option("127.0.0.1:50051", "Address to serve on: host:port or unix:/path.", metavar="ADDRESS")
    scheduler: str = option("127.0.0.1:50052", "gRPC address of the cell's scheduler.", metavar="ADDRESS")
    served_model_name: tuple[str, ...] = option(
        (),
        "Names clients may call the model by; answers to requests without one bear the first. Default: its folder's.",
        metavar="NAME",
    )
    chat_template: str | None = option(
        None, "Jinja chat template, as a file or as it is, instead of the model's own.", metavar="FILE|TEMPLATE"
    )
    cell_key_file: Path | None = option(None, "File with the key of the scheduler's cell, where it has one.")
    name: str = option("tokenizer", "What the scheduler's logs and metrics call this process.")
    max_num_requests: int = option(
        4096, "Completions in flight (prompts x n of every request); more are answered with RESOURCE_EXHAUSTED, 429."
    )
    response_role: str = option("assistant", "Role of the messages that chat completions answer with.")
    recovery_s: float = option(
        30.0, "Seconds that running requests wait for a scheduler that went away, before they fail with UNAVAILABLE."
    )
    drain_s: float = option(30.0, "Seconds that running requests get to end when the service is told to stop.")
    otlp_traces_endpoint: str | None = option(
        None,
        "Where to send OpenTelemetry traces, by gRPC, as in http://127.0.0.1:4317; needs pagoda[otel]. Default: what "
        "OpenTelemetry's own variables say, else nowhere.",
    )
    log_level: str = option("info", "Least severe messages to log.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        if self.max_num_requests < 1:
            raise ValueError(f"max_num_requests is {self.max_num_requests}; it must be at least 1")
        for name in ("recovery_s", "drain_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if any(not name for name in self.served_model_name):
            raise ValueError("served_model_name holds an empty name")
