"""Copies of whole KV blocks: between the cache and host memory, and within the cache.

Knows which block goes where, as the plan says, and nothing of rows or of what the blocks hold.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.plan_arrays import PlanError, read_indices, require_distinct, require_parallel
from pagoda.v1 import step_pb2

Pairs = list[tuple[int, int]]
"""(source, target)."""


class BlockCopier:
    """The cache, and the host memory that holds blocks which the cache has no room for."""

    def __init__(self, cache: Tensor, num_host_blocks: int) -> None:
        """cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_elements]"""
        # A block of either is [num_layers, 2, block_size, num_kv_heads, head_elements]. In host memory it is in one
        # piece, which a GPU copies at once. Untouched pages cost nothing there, unless they are pinned for a GPU.
        self._cache = cache.movedim(2, 0)
        shape = (num_host_blocks, *self._cache.shape[1:])
        self._host = torch.empty(shape, dtype=cache.dtype, pin_memory=cache.is_cuda)
        self._written: NDArray[np.bool_] = np.zeros(num_host_blocks, np.bool_)

    def reset(self) -> None:
        """Forgets what is in host memory."""
        self._written[:] = False

    def apply(self, plan: step_pb2.StepPlan) -> None:
        """Offloads, then copies, then loads; the cache's stream runs them in this order, before what comes later.

        Raises PlanError, and copies nothing, for a block that does not exist, that two are copied to at once, or that
        is loaded though nothing was offloaded to it.
        """
        if not (plan.HasField("offloads") or plan.HasField("copies") or plan.HasField("loads")):
            return
        num_blocks, num_host_blocks = len(self._cache), len(self._host)
        offloads = _read_pairs(plan.offloads, "offloads", num_blocks, num_host_blocks)
        copies = _read_pairs(plan.copies, "copies", num_blocks, num_blocks)
        loads = _read_pairs(plan.loads, "loads", num_host_blocks, num_blocks)
        self._written[[target for _, target in offloads]] = True
        for source, _ in loads:
            if not self._written[source]:
                raise PlanError(f"host block {source} is loaded, but nothing was offloaded to it")
        for source, target in offloads:
            self._host[target].copy_(self._cache[source], non_blocking=True)
        # A target may be the source of another copy: all are read before one is written.
        blocks = [self._cache[source].clone() for source, _ in copies]
        for block, (_, target) in zip(blocks, copies, strict=True):
            self._cache[target].copy_(block)
        for source, target in loads:
            self._cache[target].copy_(self._host[source], non_blocking=True)


def _read_pairs(message: step_pb2.BlockCopies, name: str, num_sources: int, num_targets: int) -> Pairs:
    sources = read_indices(message.sources, f"{name}.sources", num_sources)
    targets = read_indices(message.targets, f"{name}.targets", num_targets)
    require_parallel(**{f"{name}.sources": sources, f"{name}.targets": targets})
    require_distinct(targets, f"{name}.targets")
    return list(zip(sources.tolist(), targets.tolist(), strict=True))
