"""The kernels as production launches them: which shapes and dtypes they are compiled for.

    python -m pagoda.kernels.triton.variants            # compiles all for every target, and prints what each one takes
    python -m pagoda.kernels.triton.variants sm_90      # for some

Needs no GPU. A variant calls launchers with tensors that have no memory; what they launch is recorded.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams
from pagoda.kernels.sampling import SamplingTensors
from pagoda.kernels.triton.activation import gelu_tanh_and_mul, silu_and_mul
from pagoda.kernels.triton.ahead import TARGETS, Launch, compile_for, recorded_launches
from pagoda.kernels.triton.backend import DETERMINISTIC_SPLIT, TritonBackend
from pagoda.kernels.triton.norm import add_rms_norm, rms_norm
from pagoda.kernels.triton.penalties import PenaltyTensors, apply_penalties
from pagoda.kernels.triton.rope import norm_and_rotate
from pagoda.kernels.triton.sampling import sample
from pagoda.kernels.triton.tuning import TUNINGS, tuned_for

HEAD_DIMS = (64, 128, 256)
BLOCK_SIZES = (16, 32, 64)
CACHE_DTYPES = (torch.bfloat16, torch.float8_e4m3fn)

# Shapes of a model of 8 billion parameters; none of these numbers changes the code but by its divisors.
_NUM_SEQS, _NUM_TOKENS, _NUM_BLOCKS, _TABLE_WIDTH = 32, 512, 1024, 256
_NUM_HEADS, _NUM_KV_HEADS = 32, 8
_MASKS = {"full": AttentionParams(0.1), "window, capped": AttentionParams(0.1, sliding_window=4096, soft_cap=50.0)}


@dataclass(frozen=True)
class Variant:
    """One call of a launcher."""

    name: str
    call: Callable[[], object]
    representative: bool
    """Among the few that stand for all where time is short."""

    def launches(self, target: str) -> list[Launch]:
        """What is launched on a target, a name of `ahead.TARGETS`."""
        with tuned_for(target), recorded_launches() as launches:
            self.call()
        return launches


def variants() -> Iterator[Variant]:
    """All of them."""
    yield from _attention()
    yield from _rotary()
    yield from _rows()


def _attention() -> Iterator[Variant]:
    sizes = itertools.product(HEAD_DIMS, BLOCK_SIZES, CACHE_DTYPES, _MASKS)
    for head_dim, block_size, dtype, mask in sizes:
        name = f"attention, head {head_dim}, block {block_size}, {_name(dtype)}, {mask}"

        def call(
            head_dim: int = head_dim, block_size: int = block_size, dtype: torch.dtype = dtype, mask: str = mask
        ) -> None:
            cache = _cache(head_dim, block_size, dtype)
            q = _meta(_NUM_TOKENS, _NUM_HEADS, head_dim)
            plan = TritonBackend(split_len=DETERMINISTIC_SPLIT).plan(_batch(), block_size)
            plan.attend(q, cache, cache, _MASKS[mask])

        usual = head_dim >= 128 and dtype == torch.bfloat16 and mask == "full"
        special = head_dim == 128 and dtype != torch.bfloat16 and mask != "full"
        yield Variant(name, call, block_size == 16 and (usual or special))


def _rotary() -> Iterator[Variant]:
    for head_dim, block_size, dtype, normed in itertools.product(HEAD_DIMS, BLOCK_SIZES, CACHE_DTYPES, (False, True)):
        name = f"rope, head {head_dim}, block {block_size}, {_name(dtype)}{', normed' if normed else ''}"

        def call(
            head_dim: int = head_dim, block_size: int = block_size, dtype: torch.dtype = dtype, normed: bool = normed
        ) -> None:
            cache = _cache(head_dim, block_size, dtype)
            qkv = _meta(_NUM_TOKENS, _NUM_HEADS + 2 * _NUM_KV_HEADS, head_dim)
            angles = _meta(_NUM_TOKENS, head_dim // 2, dtype=torch.float32)
            weight = _meta(head_dim) if normed else None
            plan = TritonBackend().plan(_batch(), block_size)
            plan.rope_and_store(qkv, angles, angles, cache, cache, AttentionParams(0.1), q_norm=weight, k_norm=weight)
            plan.store(qkv[:, -16:-8], qkv[:, -8:], cache, cache)
            norm_and_rotate(qkv, _NUM_KV_HEADS, angles, angles, q_norm=weight, k_norm=weight)

        yield Variant(name, call, head_dim == 128 and block_size == 16 and normed == (dtype == torch.bfloat16))


def _rows() -> Iterator[Variant]:
    for dim in (896, 4096, 8192):

        def norms(dim: int = dim) -> None:
            x = _meta(_NUM_TOKENS, dim)
            for weight in (_meta(dim), _meta(dim, dtype=torch.float32)):
                rms_norm(x, weight, 1e-5)
                add_rms_norm(x, x, weight, 1e-5)

        yield Variant(f"norms, {dim}", norms, dim == 4096)

    def activations() -> None:
        gate_up = _meta(_NUM_TOKENS, 28672)
        silu_and_mul(gate_up)
        gelu_tanh_and_mul(gate_up)

    yield Variant("activations", activations, True)
    for vocab_size in (32000, 151936, 262144):

        def sampling(vocab_size: int = vocab_size) -> None:
            logits = _meta(_NUM_SEQS, vocab_size, dtype=torch.float32)
            numbers, integers = _meta(_NUM_SEQS, dtype=torch.float32), _meta(_NUM_SEQS, dtype=torch.int64)
            sample(logits, SamplingTensors(numbers, numbers, integers.int(), numbers, integers, integers))
            counts = _meta(_NUM_SEQS, vocab_size, dtype=torch.int32)
            biases = _meta(_NUM_SEQS, 16, dtype=torch.float32)
            apply_penalties(
                logits,
                PenaltyTensors(numbers, numbers, numbers, counts, counts.bool(), integers.int(), biases.int(), biases),
            )

        yield Variant(f"sampling, {vocab_size}", sampling, vocab_size == 151936)


def _batch() -> AttentionBatch:
    return AttentionBatch(
        cu_seqlens_q=_meta(_NUM_SEQS + 1, dtype=torch.int32),
        seq_lens=_meta(_NUM_SEQS, dtype=torch.int32),
        block_tables=_meta(_NUM_SEQS, _TABLE_WIDTH, dtype=torch.int32),
        slot_mapping=_meta(_NUM_TOKENS, dtype=torch.int64),
    )


def _cache(head_dim: int, block_size: int, dtype: torch.dtype) -> Tensor:
    return _meta(_NUM_BLOCKS, block_size, _NUM_KV_HEADS, head_dim, dtype=dtype)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Prints a table of all variants."""
    for target, variant in itertools.product(sys.argv[1:] or TARGETS, variants()):
        for launch in variant.launches(target):
            took = compile_for(launch, target)
            limit = TUNINGS[target].shared_bytes
            remark = "" if took.shared_bytes <= limit and not took.spilled else "  <-- too much"
            print(
                f"{target:8} {launch.name:20} {took.registers:4} registers {took.spilled:5} B spilled "
                f"{took.shared_bytes:7} B shared  {variant.name}{remark}",
                flush=True,
            )


if __name__ == "__main__":
    main()
