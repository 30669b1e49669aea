"""The sizes of the KV cache and of host memory, and the errors when they are too small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pagoda.executor.kv_cache import (
    CacheLimits,
    HostMemory,
    KvLayout,
    allocate,
    plan_host_memory,
    plan_layout,
    split_layers,
)
from pagoda.executor.models.config import LayerConfig, ModelConfig
from pagoda.executor.models.rope import RopeConfig
from pagoda.executor.transfer.shared_memory import SharedMemory, open_shared

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    model_type="llama",
    dtype="bfloat16",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=64,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    layers=(LayerConfig(RopeConfig(1e4, 8)),) * 3,
    max_position=4096,
    norm_eps=1e-6,
)
BLOCK_BYTES = 2 * 3 * 16 * 4 * 8 * 2
GIB = 1 << 30


def make_layout(device: str = "cpu", available: int = 64 * GIB, **limits: Any) -> KvLayout:
    return plan_layout(
        CONFIG,
        block_size=16,
        dtype=torch.bfloat16,
        limits=CacheLimits(**{"max_num_seqs": 10_000, "max_model_len": 4096} | limits),
        device=torch.device(device),
        available_bytes=available,
    )


def test_sizes() -> None:
    assert make_layout().block_bytes == BLOCK_BYTES
    # On a CPU: all rows at full length, if that is less than 4 GiB and the share of what is free.
    assert make_layout(max_num_seqs=3, max_model_len=100).num_blocks == 3 * 7
    assert make_layout().num_blocks == 4 * GIB // BLOCK_BYTES
    assert make_layout(available=GIB, gpu_memory_utilization=0.5).num_blocks == GIB // 2 // BLOCK_BYTES
    # On a GPU: the share alone.
    assert make_layout("cuda", max_num_seqs=1).num_blocks == int(0.9 * 64 * GIB) // BLOCK_BYTES
    # What was asked for.
    assert make_layout(kv_cache_memory_bytes=8 * GIB).num_blocks == 8 * GIB // BLOCK_BYTES
    assert make_layout(num_gpu_blocks_override=999_999).num_blocks == 999_999
    assert make_layout(num_gpu_blocks_override=256).num_blocks == 256


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        ({"num_gpu_blocks_override": 255}, "--num-gpu-blocks-override"),
        ({"kv_cache_memory_bytes": 1000}, "--kv-cache-memory-bytes"),
        ({"available": 1000}, "--kv-cache-memory-bytes"),
        ({"available": 1000, "device": "cuda"}, "--gpu-memory-utilization"),
    ],
)
def test_one_request_must_fit(limits: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"needs 256 .*raise {option} or lower --max-model-len"):
        make_layout(**limits)


@pytest.mark.parametrize("option", ["num_gpu_blocks_override", "kv_cache_memory_bytes"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_asked_for_must_be_free(device: str, option: str) -> None:
    size = {"num_gpu_blocks_override": GIB // BLOCK_BYTES, "kv_cache_memory_bytes": GIB}[option]
    needed = GIB // BLOCK_BYTES * BLOCK_BYTES
    assert make_layout(device, needed, **{option: size}).num_bytes == needed
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(ValueError, match=rf"would take 1\.0 GiB, but 1\.0 GiB are free: lower {flag}"):
        make_layout(device, needed - 1, **{option: size})


@pytest.mark.parametrize("is_shared", [False, True])
def test_allocate(is_shared: bool) -> None:
    layout = KvLayout(num_blocks=5, block_size=2, num_layers=3, num_kv_heads=4, head_dim=6, dtype=torch.float16)
    memory = SharedMemory(layout.num_bytes) if is_shared else None
    cache = allocate(layout, torch.device("cpu"), memory)
    if memory:
        cache[2, 1, 4, 1, 3, 5] = 1.5
        content = open_shared(memory.address(), layout.num_bytes)
        assert content[-2:].tolist() == cache.flatten()[-1:].view(torch.uint8).tolist()
        assert content[-2:].any()
    assert cache.nbytes == layout.num_bytes
    layers = split_layers(cache)
    assert len(layers) == 3
    for i, layer in enumerate(layers):
        for j, part in enumerate(layer):
            assert part.shape == (5, 2, 4, 6)
            assert part.is_contiguous()
            assert part.data_ptr() == cache[i, j].data_ptr()


def test_in_int8_every_head_has_its_scale() -> None:
    layout = KvLayout(num_blocks=5, block_size=2, num_layers=3, num_kv_heads=4, head_dim=8, dtype=torch.int8)
    cache = allocate(layout, torch.device("cpu"))
    assert cache.shape == (3, 2, 5, 2, 4, 8 + 4)
    assert cache.nbytes == layout.num_bytes
    # Half of bfloat16's memory, and the scales.
    assert layout.block_bytes == replace(layout, dtype=torch.bfloat16).block_bytes // 2 + 3 * 2 * 2 * 4 * 4


@pytest.mark.parametrize(
    ("swap_space", "kv_offloading_size", "expected"),
    [
        (0.0, 0.0, None),
        (1.0, 0.0, HostMemory(GIB // BLOCK_BYTES, swap_only=True)),
        (0.0, 0.5, HostMemory(GIB // 2 // BLOCK_BYTES, swap_only=False)),
        (1.0, 0.5, HostMemory(3 * GIB // 2 // BLOCK_BYTES, swap_only=False)),
        (BLOCK_BYTES / GIB, 0.0, HostMemory(1, swap_only=True)),
    ],
)
def test_host_memory(swap_space: float, kv_offloading_size: float, expected: HostMemory | None) -> None:
    sizes = {"swap_space": swap_space, "kv_offloading_size": kv_offloading_size}
    assert plan_host_memory(make_layout(), **sizes, available_bytes=2 * GIB) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1e-12, 0.0), "--swap-space is 1e-12 GiB, less than one KV block"),
        ((1.0, (BLOCK_BYTES - 1) / GIB), "--kv-offloading-size is .* GiB, less than one KV block"),
        ((3.0, 0.0), "would take 3.0 GiB, but 2.0 GiB are free: lower --swap-space$"),
        ((1.5, 1.0), "would take 2.5 GiB, but 2.0 GiB are free: lower --swap-space and --kv-offloading-size$"),
    ],
)
def test_host_memory_must_make_sense(sizes: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_host_memory(make_layout(), swap_space=sizes[0], kv_offloading_size=sizes[1], available_bytes=2 * GIB)
