"""Options of the executor."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass

from pagoda.options import option

KERNELS = ("auto", "reference", "cpu")
QUANTIZATIONS = ("none", "int8", "int4")


@dataclass(frozen=True)
class ExecutorOptions:
    """One executor process; where a name exists in vLLM, it means the same here."""

    model: str | None = option(None, "Folder of a Hugging Face checkpoint (safetensors).", positional=True)
    scheduler: str = option("127.0.0.1:50052", "gRPC address of the scheduler.", metavar="HOST:PORT")
    listen: str = option("127.0.0.1:50053", "gRPC address to listen on; port 0 picks one.", metavar="ADDRESS")
    name: str = option("", "Name in logs and metrics; the host name when empty.")
    role: str = option("mixed", "What this executor does with requests.", choices=("mixed", "prefill", "decode"))
    device: str = option(
        "auto", "Where the model runs; auto takes a GPU if there is one.", choices=("auto", "cpu", "cuda")
    )
    dtype: str = option(
        "auto",
        "Type of weights and KV cache; auto takes the checkpoint's (on a CPU bfloat16 for float16).",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    kernels: str = option(
        "auto",
        "What computes: native kernels (cpu) or torch alone (reference); auto takes the fastest that is possible.",
        choices=KERNELS,
    )
    quantization: str = option(
        "none",
        "Rounds the weights of linear layers to 8 or 4 bits while loading; see the README for what that costs.",
        choices=QUANTIZATIONS,
    )
    load_format: str = option("auto", "dummy: random weights instead of the checkpoint's.", choices=("auto", "dummy"))
    max_model_len: int | None = option(
        None, "Longest prompt + completion, in tokens; the model's own limit if not set."
    )
    max_num_seqs: int = option(256, "Most requests that run at the same time.")
    max_num_batched_tokens: int | None = option(
        None,
        "Most tokens computed in one step. Default: 2048 on a GPU, 256 on a CPU; at least --max-num-seqs and 64.",
    )
    block_size: int = option(16, "Tokens per KV block.")
    gpu_memory_utilization: float = option(
        0.9, "Share of the free memory, weights loaded, for the KV cache, in (0, 1]; on a CPU at most 4 GiB unasked."
    )
    kv_cache_memory_bytes: int | None = option(None, "Memory of the KV cache, in bytes, instead of that share.")
    num_gpu_blocks_override: int | None = option(None, "Number of KV blocks, instead of any computed size.")
    swap_space: float = option(
        0.0,
        "Host memory for the KV blocks of preempted requests, in GiB per executor; without it they are recomputed.",
        metavar="GIB",
    )
    kv_offloading_size: float = option(
        0.0,
        "Host memory for all KV blocks that the prefix cache evicts, in GiB per executor; added to --swap-space.",
        metavar="GIB",
    )
    threads: int | None = option(None, "CPU threads of the model; as many as cores may be used if not set.")
    log_level: str = option("info", "Least severe log lines.", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for name in ("max_num_seqs", "block_size"):
            _require_positive(name, getattr(self, name))
        for name in (
            "max_num_batched_tokens",
            "max_model_len",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
            "threads",
        ):
            if (value := getattr(self, name)) is not None:
                _require_positive(name, value)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"--gpu-memory-utilization is {self.gpu_memory_utilization}; it must be in (0, 1]")
        for name in ("swap_space", "kv_offloading_size"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{_flag(name)} is {value}; it must be a number of GiB, at least 0")

    @property
    def display_name(self) -> str:
        """`name`, or the host's."""
        return self.name or socket.gethostname()


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{_flag(name)} is {value}; it must be at least 1")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
