"""What this process may take of its machine, or of its container: memory and cores."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Free memory of `device`; on the CPU what the machine and the container's limit both allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    host = _available_on_host()
    limit = _cgroup_headroom()
    return host if limit is None else min(host, limit)


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Turns an error of an allocator, of torch's or numpy's, on a GPU or a CPU, into a ValueError.

    what: is to be allocated; remedy: what the user can do
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        # torch's allocator for the CPU has no error class of its own.
        is_refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if is_refused or isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in reason:
            raise ValueError(f"not enough memory for {what}: {remedy} ({reason})") from None
        raise


def usable_cores() -> int:
    """Cores that this process may keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # Microseconds of computing per period, of all cores together (cgroup v2).
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _available_on_host() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Not Linux: all of its memory is the best figure there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_headroom() -> int | None:
    """Bytes below the container's memory limit (cgroup v2); None without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        # Cached file pages count as used, but are given back on demand.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        reclaimable = int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + reclaimable)
