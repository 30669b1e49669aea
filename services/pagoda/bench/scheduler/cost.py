"""How long a step takes on an executor, from the sizes of the model and the rates of the device.

The matrix products of all tokens and the attention over all contexts are kernels that run one after the other; each is
bound by memory or by arithmetic (the roofline model), so a step takes

    overhead + max(weights / bandwidth, FLOPs / rate) + max(KV read / bandwidth, FLOPs / rate) + copies

The rates of the presets are 83 % of the memory bandwidth and half the dense FLOP rate of the vendor's data sheet. With
these, the model is within 10 % of what NVIDIA publishes for Llama-3.1-8B in FP8 on an H200 (TensorRT-LLM 1.0) at
128/128, 128/2048, 1000/1000 and 2048/2048 input/output tokens: a test says so. The CPU preset has rates as measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from pagoda.options import option

GB = 1e9
TERA = 1e12


class StepWork(NamedTuple):
    """What a step asks of the device."""

    num_tokens: int
    """Computed in this step."""
    num_context_tokens: int
    """Keys and values read: the rows' lengths, summed up."""
    num_attention_pairs: int
    """(query, key) pairs: each computed token with everything up to itself."""
    num_moved_tokens: int = 0
    """Keys and values that move between cache and host memory."""
    num_copied_tokens: int = 0
    """Keys and values copied within the cache."""


@dataclass(frozen=True, slots=True)
class CostModel:
    weight_bytes: float
    """Read by every step."""
    kv_bytes_per_token: float
    flops_per_token: float
    attention_flops_per_pair: float
    memory_bandwidth: float
    """Bytes per second, as achieved."""
    flop_rate: float
    """FLOPs per second, as achieved."""
    host_bandwidth: float
    """Bytes per second between cache and host memory."""
    step_overhead_s: float

    def step_s(self, work: StepWork) -> float:
        seconds = self.step_overhead_s
        if work.num_tokens:
            seconds += max(
                self.weight_bytes / self.memory_bandwidth, work.num_tokens * self.flops_per_token / self.flop_rate
            )
            seconds += max(
                work.num_context_tokens * self.kv_bytes_per_token / self.memory_bandwidth,
                work.num_attention_pairs * self.attention_flops_per_pair / self.flop_rate,
            )
        # A copy within the cache reads and writes.
        seconds += work.num_moved_tokens * self.kv_bytes_per_token / self.host_bandwidth
        return seconds + 2 * work.num_copied_tokens * self.kv_bytes_per_token / self.memory_bandwidth


@dataclass(frozen=True, slots=True)
class ModelShape:
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    weight_size: int
    """Bytes per parameter."""
    kv_size: int
    """Bytes per number in the KV cache."""

    @property
    def num_active_parameters(self) -> int:
        """Those a token is multiplied with: all but the embedding."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    def cost(self, memory_bandwidth: float, flop_rate: float, host_bandwidth: float, overhead_s: float) -> CostModel:
        return CostModel(
            weight_bytes=self.num_active_parameters * self.weight_size,
            kv_bytes_per_token=2 * self.num_layers * self.num_kv_heads * self.head_size * self.kv_size,
            flops_per_token=2 * self.num_active_parameters,
            attention_flops_per_pair=4 * self.num_layers * self.num_heads * self.head_size,
            memory_bandwidth=memory_bandwidth,
            flop_rate=flop_rate,
            host_bandwidth=host_bandwidth,
            step_overhead_s=overhead_s,
        )


@dataclass(frozen=True, slots=True)
class Preset:
    """A model on a device, and limits that suit them."""

    cost: CostModel
    kv_cache_bytes: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int


_LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128_256, weight_size=2, kv_size=2)
_QWEN_05B = ModelShape(24, 896, 4864, 14, 2, 64, 151_936, weight_size=2, kv_size=2)

PRESETS = {
    # H100 SXM: 80 GB, 3.35 TB/s, 989 TFLOP/s in bf16; PCIe 5 x16: 64 GB/s. 90 % of the memory less weights and 2 GB.
    "h100-8b": Preset(
        _LLAMA_8B.cost(0.83 * 3.35 * TERA, 0.5 * 989 * TERA, 0.8 * 64 * GB, 0.5e-3),
        kv_cache_bytes=54 * GB,
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
    ),
    # H200 SXM: 141 GB, 4.8 TB/s, 1,979 TFLOP/s in FP8. Weights and KV cache in FP8.
    "h200-8b-fp8": Preset(
        replace(_LLAMA_8B, weight_size=1, kv_size=1).cost(0.83 * 4.8 * TERA, 0.5 * 1979 * TERA, 0.8 * 64 * GB, 0.5e-3),
        kv_cache_bytes=116 * GB,
        max_model_len=8192,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
    ),
    # Two Zen 5 cores with AVX-512 bf16: 40 GB/s and 0.8 TFLOP/s measured. Host memory is the cache's own.
    "cpu-0.5b": Preset(
        _QWEN_05B.cost(40 * GB, 0.8 * TERA, 20 * GB, 1e-3),
        kv_cache_bytes=4 * GB,
        max_model_len=8192,
        max_num_seqs=32,
        max_num_batched_tokens=512,
    ),
}


@dataclass(frozen=True)
class DeviceOptions:
    """Named as the fields of CostModel; what is not given is the preset's."""

    preset: str = option("h100-8b", "Model and device to stand in for.", choices=tuple(PRESETS))
    weight_bytes: float | None = option(None, "Bytes of weights every step reads.")
    kv_bytes_per_token: float | None = option(None, "Bytes of keys and values per token.")
    flops_per_token: float | None = option(None, "FLOPs of the matrix products, per token.")
    attention_flops_per_pair: float | None = option(None, "FLOPs of attention, per pair of query and key.")
    memory_bandwidth: float | None = option(None, "Achieved bytes per second.")
    flop_rate: float | None = option(None, "Achieved FLOPs per second.")
    host_bandwidth: float | None = option(None, "Bytes per second between cache and host memory.")
    step_overhead_s: float | None = option(None, "Seconds per step besides.")

    def check_device(self) -> None:
        for field in fields(CostModel):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ValueError(f"{field.name} is {value}; it must be more than 0")

    @property
    def cost_model(self) -> CostModel:
        given = {field.name: getattr(self, field.name) for field in fields(CostModel)}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS[self.preset].cost, **changes)
