"""Compiles the C++ in src/ for this machine's instructions, once per version of it, and loads the result.

    python -m pagoda.kernels.cpu.library      # compiles now, as in a container image, and prints where

Functions have C linkage, take pointers and integers, and are called through ctypes, which releases the GIL. They run on
OpenMP's threads, which are torch's: both link to the same libgomp.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).with_name("src")

# What a level needs of the processor, as /proc/cpuinfo names it, and how it is compiled; the best first.
LEVELS = {
    "avx512_bf16": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"},
        ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16", "-mavx2", "-mfma"],
    ),
    "avx512": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    ),
    "avx2": ({"avx2", "fma"}, ["-mavx2", "-mfma"]),
    "plain": (set[str](), list[str]()),
}

# Contraction to fused multiply-add is wanted; anything that reorders sums is not.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden"]
_WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]


# C types of arguments.
POINTER, SIZE, FLOAT, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class CompilerError(RuntimeError):
    """No compiler, or one that fails."""


@functools.cache
def library(level: str | None = None) -> ctypes.CDLL | None:
    """The kernels compiled for `level`, by default the best that this processor has; None where that cannot be."""
    try:
        path = compiled(level or best_level())
    except (CompilerError, OSError) as error:
        logger.warning("no native kernels, torch's are used instead: %s", error)
        return None
    # torch has loaded its libgomp, and whoever asks for the same name gets that one.
    assert torch.get_num_threads() > 0
    return ctypes.CDLL(str(path))


def declared(function: Any, argument_types: Sequence[Any], result_type: Any = None) -> Any:
    """A function of the library, told what it takes and returns."""
    function.argtypes, function.restype = argument_types, result_type
    return function


def best_level() -> str:
    """The first of LEVELS that this processor has."""
    flags = _processor_flags()
    return next(level for level, (needed, _) in LEVELS.items() if needed <= flags)


def compiled(level: str) -> Path:
    """The shared library of a level; compiles it if it is not in the cache folder.

    Raises CompilerError, or OSError when the folder cannot be written.
    """
    compiler = _compiler()
    flags = [*_FLAGS, *LEVELS[level][1]]
    sources = sorted(path for path in SOURCE_FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    digest = hashlib.sha256("\n".join([_version(compiler), *flags]).encode())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    path = _cache_folder() / f"{level}-{digest.hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # One process compiles, the others wait for it.
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            started = time.perf_counter()
            _compile(compiler, flags, [source for source in sources if source.suffix == ".cpp"], path)
            logger.info("compiled the native kernels (%s) in %.1f s: %s", level, time.perf_counter() - started, path)
    return path


def _compile(compiler: str, flags: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        compiling = [
            subprocess.Popen(
                [compiler, *flags, *_WARNINGS, "-c", str(source), "-o", str(target)],
                stderr=subprocess.PIPE,
                text=True,
            )
            for source, target in zip(sources, objects, strict=True)
        ]
        failures = [process.communicate()[1] for process in compiling]
        for process, failure in zip(compiling, failures, strict=True):
            if process.returncode:
                raise CompilerError(f"{compiler} failed:\n{failure[-2000:]}")
        linked = Path(folder) / path.name
        command = [compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(linked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"{compiler} failed:\n{done.stderr[-2000:]}")
        os.replace(linked, path)


def _compiler() -> str:
    """Raises CompilerError when there is none."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if found := shutil.which(name):
            return found
    raise CompilerError(f"no C++ compiler ({wanted or 'g++ or clang++'}) is installed")


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _cache_folder() -> Path:
    if folder := os.environ.get("PAGODA_KERNEL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagoda" / "kernels"


def _processor_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


if __name__ == "__main__":
    print(compiled(best_level()))
