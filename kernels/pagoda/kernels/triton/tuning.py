"""How attention is cut for each kind of GPU: one table, and the row of it that a device uses.

Figures are starting points from sizes alone (registers, shared memory), checked by compiling ahead of time;
`tests/gpu/bench.py` is for changing them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import triton

MIN_ROWS = 16
"""Fewest rows that tensor cores multiply."""


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time, and with what."""

    rows: int
    """Rows of queries (tokens times heads of a group) of a prompt's tile; decoding has a group's heads instead."""

    keys: int
    """Keys per step of the loop."""

    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tuning:
    """The table's row for one kind of GPU; tiles by head_dim, rounded up to a power of two."""

    shared_bytes: int
    """Most shared memory (LDS) that one program may have."""

    native_fp8: bool
    """Whether Triton converts float8_e4m3fn there; else the bits are taken apart (see `fp8`)."""

    decode: dict[int, Tile]
    prefill: dict[int, Tile]

    def decode_tile(self, head_dim: int, itemsize: int) -> Tile:
        """For queries of `itemsize` bytes per number."""
        return _look_up(self.decode, head_dim, itemsize)

    def prefill_tile(self, head_dim: int, itemsize: int) -> Tile:
        """For queries of `itemsize` bytes per number."""
        return _look_up(self.prefill, head_dim, itemsize)


_KIB = 1024

TUNINGS = {
    # A100.
    "sm_80": Tuning(
        shared_bytes=163 * _KIB,
        native_fp8=False,
        decode={64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 3)},
        prefill={64: Tile(128, 64, 8, 3), 128: Tile(128, 32, 8, 3), 256: Tile(64, 32, 8, 3)},
    ),
    # H100, H200.
    "sm_90": Tuning(
        shared_bytes=227 * _KIB,
        native_fp8=True,
        decode={64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 5), 256: Tile(16, 32, 4, 5)},
        prefill={64: Tile(128, 128, 8, 3), 128: Tile(128, 128, 8, 3), 256: Tile(128, 32, 8, 3)},
    ),
    # B200.
    "sm_100": Tuning(
        shared_bytes=227 * _KIB,
        native_fp8=True,
        decode={64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 5), 256: Tile(16, 32, 4, 5)},
        prefill={64: Tile(128, 128, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(128, 32, 8, 3)},
    ),
    # MI300.
    "gfx942": Tuning(
        shared_bytes=64 * _KIB,
        native_fp8=True,
        decode={64: Tile(16, 64, 4, 2), 128: Tile(16, 64, 4, 2), 256: Tile(16, 32, 4, 2)},
        prefill={64: Tile(128, 64, 4, 1), 128: Tile(128, 64, 4, 1), 256: Tile(64, 32, 4, 2)},
    ),
    # Every other GPU: NVIDIA's from Turing on have 64 KiB at least.
    "other": Tuning(
        shared_bytes=64 * _KIB,
        native_fp8=False,
        decode={64: Tile(16, 64, 4, 2), 128: Tile(16, 32, 4, 2), 256: Tile(16, 16, 4, 2)},
        prefill={64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(64, 16, 4, 2)},
    ),
}


_chosen: ContextVar[str | None] = ContextVar("tuning", default=None)


@contextmanager
def tuned_for(name: str) -> Iterator[None]:
    """Inside, every device is the one called `name` in the table: for kernels that are compiled or interpreted."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def tuning_for(device: torch.device) -> Tuning:
    """The table's row for a device."""
    return TUNINGS[_chosen.get() or _name(device)]


@functools.cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors (compute units) of a device."""
    if device.type != "cuda":
        return 132  # nothing runs at once there: any number is as good
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def head_width(head_dim: int) -> int:
    """The power of two that a head is padded to in registers; no less than the shortest product."""
    return max(16, int(triton.next_power_of_2(head_dim)))


@functools.cache
def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_90"  # interpreted: any row is as good
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return architecture if architecture in TUNINGS else "other"
    name = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return name if name in TUNINGS else "other"


def _look_up(tiles: dict[int, Tile], head_dim: int, itemsize: int) -> Tile:
    tile = tiles[max(64, head_width(head_dim))]
    if itemsize > 2:
        return Tile(min(64, tile.rows), max(16, tile.keys // 4), tile.num_warps, min(2, tile.num_stages))
    return tile
