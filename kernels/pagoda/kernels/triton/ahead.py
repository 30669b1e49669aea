"""Compiles launches for a GPU that is not there: what a launcher would launch is recorded, then compiled.

Knows of kernels only what a launch says. Its arguments are specialized as Triton's just-in-time compiler would:
integers that are 1 are constants, integers and pointers that 16 divides are marked so, unless the kernel forbids it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""By their names in `tuning.TUNINGS`."""

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_MARKED = [["tt.divisibility", 16]]


@dataclass
class Launch:
    """One kernel and what it is specialized on."""

    kernel: JITFunction[Any]
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    marked: list[str] = field(default_factory=list)
    """Arguments that 16 divides."""

    options: dict[str, Any] = field(default_factory=dict)
    """num_warps and num_stages."""

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    shared_bytes: int
    """Shared memory (LDS) per program."""

    spilled: int
    """Bytes of memory per thread that registers and arrays took for lack of registers."""

    registers: int
    """Per thread."""


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, nothing is launched: the list gets what would have been. Tensors may be on torch's device "meta"."""
    launches: list[Launch] = []

    def record(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_specialize(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


def compile_for(launch: Launch, target: str) -> Resources:
    """Compiles for a name of TARGETS. Raises what Triton raises when it cannot."""
    names = launch.kernel.arg_names
    source = ASTSource(
        launch.kernel,
        launch.signature,
        launch.constants,
        {(names.index(name),): _MARKED for name in launch.marked},
    )
    compiled = triton.compile(source, target=TARGETS[target], options=launch.options)
    if "cubin" in compiled.asm:
        return Resources(compiled.metadata.shared, *_cuda_resources(compiled.asm["cubin"]))
    return Resources(compiled.metadata.shared, *_hip_resources(compiled.asm["amdgcn"]))


def _specialize(kernel: JITFunction[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    launch = Launch(kernel)
    values = dict(zip(kernel.arg_names, args, strict=False))
    for name, value in kwargs.items():
        if name in kernel.arg_names:
            values[name] = value
        else:
            launch.options[name] = value
    assert set(values) == set(kernel.arg_names), f"{launch.name} is launched without some of its arguments"
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            launch.signature[name], launch.constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            launch.signature[name] = f"*{_TYPES[value.dtype]}"
            # Allocations are aligned; a view is as far as its offset allows.
            if value.storage_offset() * value.element_size() % 16 == 0:
                launch.marked.append(name)
        elif isinstance(value, float):
            launch.signature[name] = "fp32"
        else:
            launch.signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                launch.marked.append(name)
    return launch


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """Spilled bytes and registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["STACK"] + numbers["LOCAL"], numbers["REG"]


def _hip_resources(assembly: str) -> tuple[int, int]:
    """Spilled bytes and registers."""
    numbers = {
        name: int(value)
        for name, value in re.findall(r"\.(private_segment_fixed_size|vgpr_spill_count|vgpr_count):\s+(\d+)", assembly)
    }
    return numbers["private_segment_fixed_size"] + 4 * numbers["vgpr_spill_count"], numbers["vgpr_count"]
