"""One model on several ranks: processes that each keep a share of every layer (https://arxiv.org/abs/1909.08053).

Each rank has the same share of the heads with their part of the KV cache, of the MLP's width and of the vocabulary; the
residual stream is whole everywhere. Knows how tensors are shared out and brought together, not what is in them, nor how
ranks learn what to compute.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pagoda.executor.models.config import ModelConfig


class Ranks(Protocol):
    """A group of ranks, seen from one of them. All of them call the same operations in the same order."""

    rank: int
    """[0, size)."""

    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, which may be overwritten."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' x, side by side along the last dimension."""
        ...


class OneRank:
    """Nobody to share with."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x


ONE_RANK = OneRank()


class TorchRanks:
    """The processes of a torch.distributed group, which its caller made and ends."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = group

    def all_reduce(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, dim=-1)


def share(x: Tensor, dim: int, ranks: Ranks) -> Tensor:
    """What a rank keeps of dimension `dim`, a view."""
    size = x.shape[dim] // ranks.size
    return x.narrow(dim, ranks.rank * size, size)


def share_of(config: ModelConfig, ranks: Ranks) -> ModelConfig:
    """The model that one rank computes: `config` with its share of heads and of the MLP.

    Raises ValueError when something does not divide.
    """
    for name in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"):
        if (whole := getattr(config, name)) % ranks.size:
            raise ValueError(f"the model's {name} of {whole} cannot be shared out evenly to {ranks.size} ranks")
    return replace(
        config,
        num_heads=config.num_heads // ranks.size,
        num_kv_heads=config.num_kv_heads // ranks.size,
        intermediate_size=config.intermediate_size // ranks.size,
    )
