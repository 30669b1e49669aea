"""What tests of the Triton kernels share, in the interpreter and on a GPU: random inputs, and plain truths."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.philox import uniform
from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.reference.attention import paged_attention
from pagoda.kernels.sampling import SamplingTensors

Lens = list[tuple[int, int]]


@dataclass(frozen=True)
class PagedCase:
    """A ragged batch over a cache in which all that no sequence owns is NaN."""

    batch: AttentionBatch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor

    def reference(self, params: AttentionParams) -> Tensor:
        """[num_tokens, num_heads, head_dim] float32."""
        return paged_attention(self.q.float(), self.k_cache.float(), self.v_cache.float(), self.batch, params)


def paged_case(
    lens: Lens,
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    device: str = "cpu",
    host: bool = False,
    seed: int = 0,
) -> PagedCase:
    """lens: (tokens in the cache after the step, new tokens of the step) per sequence."""
    rng = torch.Generator(device=device).manual_seed(seed)
    counts = [-(-seq_len // block_size) for seq_len, _ in lens]
    num_blocks = sum(counts) + 3
    order = np.random.default_rng(seed).permutation(num_blocks).tolist()
    # What lies past a table's end may not matter: here it is no valid block id.
    tables = np.full((len(lens), max(counts) + 1), -7, np.int32)
    owned = np.zeros((num_blocks, block_size), bool)
    for i, (seq_len, _) in enumerate(lens):
        tables[i, : counts[i]] = [order.pop() for _ in range(counts[i])]
        positions = np.arange(seq_len)
        owned[tables[i, positions // block_size], positions % block_size] = True
    mask = torch.from_numpy(owned).to(device)[:, :, None, None]
    shape = (num_blocks, block_size, kv_heads, dim)
    caches = [
        torch.where(mask, torch.randn(shape, generator=rng, device=device), math.nan).to(cache_dtype or dtype)
        for _ in "kv"
    ]
    num_tokens = sum(new for _, new in lens)
    cu_seqlens = np.array([0, *itertools.accumulate(new for _, new in lens)], np.int32)
    seq_lens = np.array([seq_len for seq_len, _ in lens], np.int32)
    batch = AttentionBatch(
        cu_seqlens_q=torch.from_numpy(cu_seqlens).to(device),
        seq_lens=torch.from_numpy(seq_lens).to(device),
        block_tables=torch.from_numpy(tables).to(device),
        slot_mapping=torch.full((num_tokens,), -1, device=device),
        host=HostLengths(cu_seqlens, seq_lens) if host else None,
    )
    q = torch.randn(num_tokens, heads, dim, generator=rng, device=device).to(dtype)
    return PagedCase(batch, q, *caches)


def sampling_tensors(parameters: dict[str, NDArray[np.generic]], device: str = "cpu") -> SamplingTensors:
    """Of arrays under the fields' names; seeds are uint64."""
    dtypes = {"temperature": np.float32, "top_p": np.float32, "top_k": np.int32, "min_p": np.float32}
    tensors = {name: torch.from_numpy(parameters[name].astype(dtype)).to(device) for name, dtype in dtypes.items()}
    seed = torch.from_numpy(parameters["seed"].view(np.int64).copy()).to(device)
    position = torch.from_numpy(parameters["position"].astype(np.int64)).to(device)
    return SamplingTensors(**tensors, seed=seed, position=position)


def random_parameters(count: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """Sampling parameters of `count` rows, all kinds of them."""
    rng = np.random.default_rng(seed)
    return {
        "temperature": rng.choice([0.0, 0.5, 1.0, 1.5], count, p=[0.1, 0.3, 0.3, 0.3]).astype(np.float32),
        "top_p": rng.choice([0.05, 0.5, 0.9, 0.999, 1.0], count).astype(np.float32),
        "top_k": rng.choice([0, 1, 3, 200, 2000], count, p=[0.4, 0.1, 0.1, 0.3, 0.1]),
        "min_p": rng.choice([0.0, 0.02, 0.3], count, p=[0.6, 0.2, 0.2]).astype(np.float32),
        "seed": rng.integers(0, 2**64, count, dtype=np.uint64),
        "position": rng.integers(0, 2**40, count),
    }


def plausible_tokens(
    logits: NDArray[np.float32], parameters: dict[str, NDArray[np.generic]], row: int, tolerance: float
) -> set[int] | None:
    """The tokens that a draw may give, by sorting in float64: one, or two where u falls within `tolerance` of a step.

    None where a bound falls within `tolerance` of a weight or sum: then what is kept is a matter of rounding.
    """
    heat, share, least = (float(parameters[name][row]) for name in ("temperature", "top_p", "min_p"))
    rank = int(parameters["top_k"][row])
    x = logits.astype(np.float64)
    if heat == 0:
        return {int(x.argmax())}
    weights = np.exp((x - x.max()) / heat)
    unsure = bool((np.abs(weights - least) < tolerance * least).any())
    bound = least
    if 0 < rank < len(x):
        kth, next_one = -np.partition(-weights, (rank - 1, rank))[rank - 1 : rank + 1]
        unsure |= 0 < kth - next_one < tolerance * kth
        bound = max(bound, kth)
    weights[weights < bound] = 0
    if share < 1:
        ordered = -np.sort(-weights)
        sums = np.cumsum(ordered)
        target = share * sums[-1]
        last = int(np.searchsorted(sums, target))
        unsure |= bool(np.abs(sums[max(0, last - 1) : last + 1] - target).min() < tolerance * sums[-1])
        unsure |= bool(0 < ordered[last] - ordered[last + 1 : last + 2].sum() < tolerance * ordered[last])
        weights[weights < ordered[last]] = 0
    if unsure:
        return None
    u = float(uniform(parameters["seed"][row : row + 1], parameters["position"][row : row + 1].astype(np.uint64))[0])
    sums = np.cumsum(weights)
    first, last = np.searchsorted(sums, sums[-1] * np.array([u - tolerance, u + tolerance]), side="right")
    return {token for token in range(first, min(last, len(x) - 1) + 1) if weights[token] > 0}
