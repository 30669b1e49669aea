"""Options of `pagoda serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagoda.children import MAX_FOLDER_CHARS
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.config import LOG_LEVELS, GatewayOptions
from pagoda.options import option, same_option
from pagoda.scheduler.config import SchedulerOptions
from pagoda.tokenizer.config import TokenizerOptions


@dataclass(frozen=True)
class ServeOptions:
    """Where a name exists in vLLM, it means the same here. An option named as a service's goes to that service."""

    model: str | None = option(
        None, "Checkpoint folder or Hugging Face id; the bundled model if not given.", positional=True
    )
    host: str = same_option(GatewayOptions, "host")
    port: int = same_option(GatewayOptions, "port")
    api_key: tuple[str, ...] = same_option(GatewayOptions, "api_key")
    allowed_origins: tuple[str, ...] = same_option(GatewayOptions, "allowed_origins")
    max_body_bytes: int = same_option(GatewayOptions, "max_body_bytes")
    access_log: str | None = same_option(GatewayOptions, "access_log")
    drain_s: float = same_option(GatewayOptions, "drain_s")
    served_model_name: tuple[str, ...] = option(
        (), 'Names clients may call the model by. Default: as given, "pagoda" for the bundled one.', metavar="NAME"
    )
    chat_template: str | None = same_option(TokenizerOptions, "chat_template")
    enable_prefix_caching: bool = same_option(SchedulerOptions, "enable_prefix_caching")
    max_num_waiting: int = same_option(SchedulerOptions, "max_num_waiting")
    scheduling_policy: str = same_option(SchedulerOptions, "scheduling_policy")
    client_weights: str = same_option(SchedulerOptions, "client_weights")
    tie_window_s: float = same_option(SchedulerOptions, "tie_window_s")
    inter_token_target_ms: float = same_option(SchedulerOptions, "inter_token_target_ms")
    max_plans_in_flight: int = same_option(SchedulerOptions, "max_plans_in_flight")
    kv_events_endpoint: str | None = same_option(SchedulerOptions, "kv_events_endpoint")
    device: str = same_option(ExecutorOptions, "device")
    dtype: str = same_option(ExecutorOptions, "dtype")
    kernels: str = same_option(ExecutorOptions, "kernels")
    enforce_eager: bool = same_option(ExecutorOptions, "enforce_eager")
    quantization: str = same_option(ExecutorOptions, "quantization")
    kv_cache_dtype: str = same_option(ExecutorOptions, "kv_cache_dtype")
    load_format: str = same_option(ExecutorOptions, "load_format")
    max_model_len: int | None = same_option(ExecutorOptions, "max_model_len")
    max_num_seqs: int = same_option(ExecutorOptions, "max_num_seqs")
    max_num_batched_tokens: int | None = same_option(ExecutorOptions, "max_num_batched_tokens")
    block_size: int = same_option(ExecutorOptions, "block_size")
    gpu_memory_utilization: float = same_option(ExecutorOptions, "gpu_memory_utilization")
    kv_cache_memory_bytes: int | None = same_option(ExecutorOptions, "kv_cache_memory_bytes")
    num_gpu_blocks_override: int | None = same_option(ExecutorOptions, "num_gpu_blocks_override")
    swap_space: float = same_option(ExecutorOptions, "swap_space")
    kv_offloading_size: float = same_option(ExecutorOptions, "kv_offloading_size")
    threads: int | None = same_option(ExecutorOptions, "threads")
    tokenizers: int = option(1, "Number of tokenizer processes.")
    executors: int | None = option(
        None,
        "Number of executor processes that do everything, each with a copy of the model. Default: 1, or none beside "
        "those that prefill and decode.",
    )
    prefill_executors: int = option(0, "Number of executor processes that compute prompts and hand them on.")
    decode_executors: int = option(0, "Number of executor processes that go on with requests handed on to them.")
    max_local_prefill_tokens: int = same_option(SchedulerOptions, "max_local_prefill_tokens")
    transfer: str = same_option(ExecutorOptions, "transfer", default="shm")
    otlp_traces_endpoint: str | None = same_option(SchedulerOptions, "otlp_traces_endpoint")
    run_dir: Path | None = option(
        None, "Folder for sockets and for state.json, which lists processes and addresses. Default: a temporary one."
    )
    log_level: str = option("warning", "Least severe messages of the services to show.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        if self.tokenizers < 1:
            raise ValueError(f"tokenizers is {self.tokenizers}; it must be at least 1")
        for name in ("executors", "prefill_executors", "decode_executors"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not any(self.num_executors.values()):
            raise ValueError("executors is 0; it must be at least 1 where no others are asked for")
        if self.run_dir is not None and len(str(self.run_dir.absolute())) > MAX_FOLDER_CHARS:
            raise ValueError(f"run_dir is too long for unix sockets; {MAX_FOLDER_CHARS} characters at most")

    @property
    def num_executors(self) -> dict[str, int]:
        """By role."""
        split = {"prefill": self.prefill_executors, "decode": self.decode_executors}
        return {"mixed": (not any(split.values())) if self.executors is None else self.executors} | split
