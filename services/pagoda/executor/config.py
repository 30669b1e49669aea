"""Options of the executor."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from pathlib import Path

from pagoda.executor.affinity import parse_cpus
from pagoda.options import option

KERNELS = ("auto", "reference", "cpu", "triton")
QUANTIZATIONS = ("none", "int8", "int4")
KV_CACHE_DTYPES = ("auto", "int8")

# More than any machine has processors; far more cannot be started.
_MAX_THREADS = 1024


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
        "Type of weights and computation; auto takes the checkpoint's (on a CPU bfloat16 for float16).",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    kernels: str = option(
        "auto",
        "What computes: Triton's kernels on a GPU (triton), native ones on a CPU (cpu), or torch alone (reference); "
        "auto takes the fastest that is possible.",
        choices=KERNELS,
    )
    enforce_eager: bool = option(False, "On a GPU, make no CUDA graphs: it starts sooner and decodes more slowly.")
    quantization: str = option(
        "none",
        "Rounds the weights of linear layers to 8 or 4 bits while loading; see the README for what that costs.",
        choices=QUANTIZATIONS,
    )
    kv_cache_dtype: str = option(
        "auto",
        "Type of the KV cache; auto takes the model's. int8 holds about twice as many tokens as bfloat16 in the same "
        "memory, each head of a token with a scale of its own; see the README for what that costs.",
        choices=KV_CACHE_DTYPES,
    )
    load_format: str = option("auto", "dummy: random weights instead of the checkpoint's.", choices=("auto", "dummy"))
    max_model_len: int | None = option(
        None, "Longest prompt + completion, in tokens; the model's own limit if not set."
    )
    max_num_seqs: int = option(256, "Most requests that run at the same time.")
    max_num_batched_tokens: int | None = option(
        None,
        "Most tokens computed in one step. Default: 2048; at least --max-num-seqs and 64.",
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
    cpus: str | None = option(None, "Processors to stay on, as in 0-3,8; all that are allowed if not set.")
    cell_key_file: Path | None = option(None, "File with the key of the scheduler's cell, where it has one.")
    transfer: str = option(
        "auto",
        "How other executors push KV blocks: on this host from one GPU's memory to another's (CUDA IPC) or through "
        "shared memory, and from others by TCP (auto); only on this host (shm), only between GPUs of it (cuda), only "
        "by TCP; or through NIXL (pip install 'pagoda[nixl]'), which then all executors must have.",
        choices=("auto", "shm", "cuda", "tcp", "nixl"),
    )
    transfer_endpoint: str = option(
        "tcp://127.0.0.1:*",
        "Where they push to by TCP, and ask by NIXL: on loopback, or, where the cell has a key, any address.",
    )
    drain_s: float = option(30.0, "Seconds that requests get to end or to move elsewhere after SIGTERM.")
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
        if self.threads is not None and self.threads > _MAX_THREADS:
            raise ValueError(f"--threads is {self.threads}; it must be at most {_MAX_THREADS}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"--gpu-memory-utilization is {self.gpu_memory_utilization}; it must be in (0, 1]")
        if not 0 <= self.drain_s < math.inf:
            raise ValueError(f"--drain-s is {self.drain_s}; it must be a number of seconds, at least 0")
        if self.cpus is not None:
            parse_cpus(self.cpus)
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
