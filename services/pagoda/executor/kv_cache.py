"""The paged KV cache and the host memory beside it: their sizes, and the cache's tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda.executor.huge_pages import private_memory
from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import KvLayer
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.kernels.attention import head_elements

_GIB = 1 << 30
# Most that a CPU executor takes unasked: a machine's memory is rarely its alone.
_MAX_DEFAULT_CPU_BYTES = 4 * _GIB


@dataclass(frozen=True)
class KvLayout:
    """Shape of the cache."""

    num_blocks: int
    block_size: int
    """Tokens per block."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    """The model's, or int8: then a head has its scale with it, see `pagoda.kernels.attention`."""

    @property
    def head_elements(self) -> int:
        """What a head takes in a slot, in elements."""
        return head_elements(self.head_dim, self.dtype)

    @property
    def block_bytes(self) -> int:
        """Memory of one block in all layers, keys and values."""
        slot = self.num_kv_heads * self.head_elements * self.dtype.itemsize
        return 2 * self.num_layers * self.block_size * slot

    @property
    def num_bytes(self) -> int:
        """Memory of the whole cache."""
        return self.num_blocks * self.block_bytes


@dataclass(frozen=True)
class CacheLimits:
    """What bounds the number of blocks."""

    max_num_seqs: int
    max_model_len: int
    gpu_memory_utilization: float = 0.9
    """Share of the available memory that the cache may take, in (0, 1]; on a GPU and on a CPU."""

    kv_cache_memory_bytes: int | None = None
    """The cache's memory, instead of that share."""

    num_gpu_blocks_override: int | None = None
    """The number of blocks, instead of everything else."""


def plan_layout(
    config: ModelConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    limits: CacheLimits,
    device: torch.device,
    available_bytes: int,
) -> KvLayout:
    """The cache within the limits: as large as they allow, but on a CPU no larger than all rows at full length.

    available_bytes: memory of `device` that is free, weights already loaded

    Raises ValueError, naming the option to change, when not even one request of max_model_len tokens fits, and for
    a size that was asked for and is more than what is free.
    """

    def layout(num_blocks: int) -> KvLayout:
        return KvLayout(num_blocks, block_size, len(config.layers), config.num_kv_heads, config.head_dim, dtype)

    blocks_per_seq = -(-limits.max_model_len // block_size)
    if limits.num_gpu_blocks_override is not None:
        num_blocks, source = limits.num_gpu_blocks_override, "--num-gpu-blocks-override"
    else:
        budget, source = _budget(limits, device, available_bytes)
        num_blocks = budget // layout(1).block_bytes
        if device.type == "cpu":
            # A GPU's memory has no other use, but a CPU's has: cached prefixes get what running requests leave.
            num_blocks = min(num_blocks, limits.max_num_seqs * blocks_per_seq)
    if num_blocks < blocks_per_seq:
        needed = layout(blocks_per_seq).num_bytes
        raise ValueError(
            f"the KV cache would have {num_blocks} blocks of {block_size} tokens, but one request of "
            f"{limits.max_model_len} tokens needs {blocks_per_seq} ({needed / 2**20:,.1f} MiB): raise {source} "
            f"or lower --max-model-len"
        )
    if (num_bytes := layout(num_blocks).num_bytes) > available_bytes:
        raise ValueError(
            f"the KV cache would take {num_bytes / _GIB:,.1f} GiB, but {available_bytes / _GIB:,.1f} GiB are free: "
            f"lower {source}"
        )
    return layout(num_blocks)


@dataclass(frozen=True)
class HostMemory:
    """Room for blocks that the cache has no room for."""

    num_blocks: int
    swap_only: bool
    """Only for blocks of preempted requests; otherwise for all that the prefix cache evicts."""


def plan_host_memory(
    layout: KvLayout, *, swap_space: float, kv_offloading_size: float, available_bytes: int
) -> HostMemory | None:
    """As many blocks as fit in both sizes together; None when both are 0.

    swap_space, kv_offloading_size: GiB; with the latter the memory is for all evicted blocks
    available_bytes: host memory that is free

    Raises ValueError, naming the option to change, for a size below one block and for more than is free.
    """
    sizes = {"--swap-space": swap_space, "--kv-offloading-size": kv_offloading_size}
    for option, size in sizes.items():
        if 0 < size * _GIB < layout.block_bytes:
            raise ValueError(
                f"{option} is {size:g} GiB, less than one KV block, which takes {layout.block_bytes:,} bytes: raise it"
            )
    num_bytes = int(sum(sizes.values()) * _GIB)
    if num_bytes > available_bytes:
        options = " and ".join(option for option, size in sizes.items() if size)
        raise ValueError(
            f"host memory for KV blocks would take {num_bytes / _GIB:,.1f} GiB, but {available_bytes / _GIB:,.1f} GiB "
            f"are free: lower {options}"
        )
    num_blocks = num_bytes // layout.block_bytes
    return HostMemory(num_blocks, swap_only=not kv_offloading_size) if num_blocks else None


def allocate(layout: KvLayout, device: torch.device, shared: SharedMemory | None = None) -> Tensor:
    """[num_layers, 2, num_blocks, block_size, num_kv_heads, head_elements]: keys and values of every layer.

    Not initialized: attention reads only what was stored, and untouched pages cost nothing.

    shared: where a cache on the CPU shall be that other processes read, of layout.num_bytes

    Raises OSError when there is no memory.
    """
    shape = (layout.num_layers, 2, layout.num_blocks, layout.block_size, layout.num_kv_heads, layout.head_elements)
    if device.type != "cpu":
        return torch.empty(shape, dtype=layout.dtype, device=device)
    memory = shared.memory if shared else private_memory(layout.num_bytes)
    return torch.frombuffer(memory, dtype=layout.dtype).view(shape)


def split_layers(cache: Tensor) -> list[KvLayer]:
    """The parts of a cache that `allocate` made."""
    return [(layer[0], layer[1]) for layer in cache.unbind()]


def _budget(limits: CacheLimits, device: torch.device, available_bytes: int) -> tuple[int, str]:
    """Bytes for the cache, and the option that raises them."""
    if limits.kv_cache_memory_bytes is not None:
        return limits.kv_cache_memory_bytes, "--kv-cache-memory-bytes"
    share = int(limits.gpu_memory_utilization * available_bytes)
    if device.type == "cpu":
        return min(share, _MAX_DEFAULT_CPU_BYTES), "--kv-cache-memory-bytes"
    return share, "--gpu-memory-utilization"
