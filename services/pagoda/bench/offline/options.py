"""Options of `pagoda bench latency` and `throughput`, named as `vllm bench` and `pagoda serve` name them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pagoda.bench.dataset import DatasetOptions
from pagoda.checkpoint import resolve_model
from pagoda.executor.config import ExecutorOptions
from pagoda.offline.engine import UNBOUNDED, Engine
from pagoda.options import option, same_option, shared_options
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.scheduler import CoreOptions


@dataclass(frozen=True)
class EngineOptions:
    """The model and the scheduler's core. Raises ValueError for values that no executor takes."""

    model: str | None = option(None, "Checkpoint folder or Hugging Face id; the bundled model if not given.")
    device: str = same_option(ExecutorOptions, "device")
    dtype: str = same_option(ExecutorOptions, "dtype")
    kernels: str = same_option(ExecutorOptions, "kernels")
    enforce_eager: bool = same_option(ExecutorOptions, "enforce_eager")
    quantization: str = same_option(ExecutorOptions, "quantization")
    load_format: str = same_option(ExecutorOptions, "load_format")
    max_model_len: int | None = same_option(ExecutorOptions, "max_model_len")
    max_num_seqs: int = same_option(ExecutorOptions, "max_num_seqs")
    max_num_batched_tokens: int | None = same_option(ExecutorOptions, "max_num_batched_tokens")
    block_size: int = same_option(ExecutorOptions, "block_size")
    kv_cache_dtype: str = same_option(ExecutorOptions, "kv_cache_dtype")
    gpu_memory_utilization: float = same_option(ExecutorOptions, "gpu_memory_utilization")
    kv_cache_memory_bytes: int | None = same_option(ExecutorOptions, "kv_cache_memory_bytes")
    num_gpu_blocks_override: int | None = same_option(ExecutorOptions, "num_gpu_blocks_override")
    swap_space: float = same_option(ExecutorOptions, "swap_space")
    kv_offloading_size: float = same_option(ExecutorOptions, "kv_offloading_size")
    threads: int | None = same_option(ExecutorOptions, "threads")
    enable_prefix_caching: bool = same_option(SchedulerOptions, "enable_prefix_caching")
    max_plans_in_flight: int = same_option(SchedulerOptions, "max_plans_in_flight")
    inter_token_target_ms: float = same_option(SchedulerOptions, "inter_token_target_ms")
    output_json: Path | None = option(None, "Write the result to this file, too.", metavar="FILE")

    def __post_init__(self) -> None:
        shared_options(ExecutorOptions, self)
        shared_options(SchedulerOptions, self)

    def open(self) -> Engine:
        """Loads the model. Raises PagodaError where that cannot be done."""
        executor = shared_options(ExecutorOptions, self, model=str(self.folder))
        core = CoreOptions(
            max_num_waiting=UNBOUNDED,
            enable_prefix_caching=self.enable_prefix_caching,
            max_plans_in_flight=self.max_plans_in_flight,
            inter_token_target_s=self.inter_token_target_ms / 1e3,
        )
        return Engine(executor, core)

    @property
    def folder(self) -> Path:
        """Of the checkpoint; a download, where `model` is an id that is not on this machine yet."""
        return resolve_model(self.model)


@dataclass(frozen=True)
class LatencyOptions(EngineOptions):
    input_len: int = option(32, "Tokens of each prompt.")
    output_len: int = option(128, "Tokens generated for each.")
    batch_size: int = option(8, "Prompts that are run at once.")
    num_iters_warmup: int = option(10, "Iterations before those that count.")
    num_iters: int = option(30, "Iterations that count.")
    seed: int = option(0, "Seed of the prompts.")
    # The same prompts come again and again.
    enable_prefix_caching: bool = same_option(SchedulerOptions, "enable_prefix_caching", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, bound in (
            ("input_len", 1),
            ("output_len", 1),
            ("batch_size", 1),
            ("num_iters", 1),
            ("num_iters_warmup", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")


@dataclass(frozen=True)
class ThroughputOptions(EngineOptions, DatasetOptions):
    num_warmups: int = option(0, "Prompts, of the same kind but others, to run before the time counts.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_dataset()
        if self.num_warmups < 0:
            raise ValueError(f"num_warmups is {self.num_warmups}; it must not be negative")

    @property
    def warmup(self) -> DatasetOptions:
        """The dataset of the warm-up."""
        return replace(self, num_prompts=self.num_warmups, seed=self.seed + 1)
