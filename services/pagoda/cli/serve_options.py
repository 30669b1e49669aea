"""Options of `pagoda serve`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.children import MAX_FOLDER_CHARS
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.config import LOG_LEVELS, GatewayOptions
from pagoda.options import option
from pagoda.scheduler.config import SchedulerOptions
from pagoda.tokenizer.config import TokenizerOptions


def _same_as(options_type: type[Any], name: str) -> Any:
    """The option `name` of a service: the same default, help and choices."""
    (field,) = [each for each in dataclasses.fields(options_type) if each.name == name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True)
class ServeOptions:
    """Where a name exists in vLLM, it means the same here. An option named as a service's goes to that service."""

    model: str | None = option(
        None, "Checkpoint folder or Hugging Face id; the bundled model if not given.", positional=True
    )
    host: str = _same_as(GatewayOptions, "host")
    port: int = _same_as(GatewayOptions, "port")
    api_key: tuple[str, ...] = _same_as(GatewayOptions, "api_key")
    allowed_origins: tuple[str, ...] = _same_as(GatewayOptions, "allowed_origins")
    max_body_bytes: int = _same_as(GatewayOptions, "max_body_bytes")
    access_log: str | None = _same_as(GatewayOptions, "access_log")
    drain_s: float = _same_as(GatewayOptions, "drain_s")
    served_model_name: tuple[str, ...] = option(
        (), 'Names clients may call the model by. Default: as given, "pagoda" for the bundled one.', metavar="NAME"
    )
    chat_template: str | None = _same_as(TokenizerOptions, "chat_template")
    enable_prefix_caching: bool = _same_as(SchedulerOptions, "enable_prefix_caching")
    max_num_waiting: int = _same_as(SchedulerOptions, "max_num_waiting")
    scheduling_policy: str = _same_as(SchedulerOptions, "scheduling_policy")
    client_weights: str = _same_as(SchedulerOptions, "client_weights")
    tie_window_s: float = _same_as(SchedulerOptions, "tie_window_s")
    inter_token_target_ms: float = _same_as(SchedulerOptions, "inter_token_target_ms")
    max_plans_in_flight: int = _same_as(SchedulerOptions, "max_plans_in_flight")
    kv_events_endpoint: str | None = _same_as(SchedulerOptions, "kv_events_endpoint")
    device: str = _same_as(ExecutorOptions, "device")
    dtype: str = _same_as(ExecutorOptions, "dtype")
    load_format: str = _same_as(ExecutorOptions, "load_format")
    max_model_len: int | None = _same_as(ExecutorOptions, "max_model_len")
    max_num_seqs: int = _same_as(ExecutorOptions, "max_num_seqs")
    max_num_batched_tokens: int = _same_as(ExecutorOptions, "max_num_batched_tokens")
    block_size: int = _same_as(ExecutorOptions, "block_size")
    gpu_memory_utilization: float = _same_as(ExecutorOptions, "gpu_memory_utilization")
    kv_cache_memory_bytes: int | None = _same_as(ExecutorOptions, "kv_cache_memory_bytes")
    num_gpu_blocks_override: int | None = _same_as(ExecutorOptions, "num_gpu_blocks_override")
    swap_space: float = _same_as(ExecutorOptions, "swap_space")
    kv_offloading_size: float = _same_as(ExecutorOptions, "kv_offloading_size")
    threads: int | None = _same_as(ExecutorOptions, "threads")
    tokenizers: int = option(1, "Number of tokenizer processes.")
    executors: int = option(1, "Number of executor processes, each with a copy of the model.")
    run_dir: Path | None = option(
        None, "Folder for sockets and for state.json, which lists processes and addresses. Default: a temporary one."
    )
    log_level: str = option("warning", "Least severe messages of the services to show.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        for name in ("tokenizers", "executors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.run_dir is not None and len(str(self.run_dir.absolute())) > MAX_FOLDER_CHARS:
            raise ValueError(f"run_dir is too long for unix sockets; {MAX_FOLDER_CHARS} characters at most")
