"""Work that is set down once and then repeated, with two implementations: a CUDA graph, and doing it again.

Either calls the function on the same tensors each time; only what is in them changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[], Tensor]


class Graph(Protocol):
    """One piece of work."""

    def replay(self) -> Tensor:
        """Does it. Returns its result, valid until any graph is replayed."""
        ...


MakeGraph = Callable[[Work], Graph]
"""Sets work down. The work must neither wait for the device nor look at what is in its tensors."""


class EagerGraph:
    """Calls the function: for CPUs, and to find out what capturing breaks."""

    def __init__(self, work: Work) -> None:
        self.replay = work


class CudaGraphs:
    """Makes CUDA graphs that share their memory: only one runs at a time. The largest should come first."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Graph:
        # Once without capturing: kernels are compiled and loaded, and libraries take their workspace.
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return _Captured(graph, result)


class _Captured:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: Tensor) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._result
