"""Errors of allocators, as what the user can do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pagoda.executor.machine import within_memory


def run_out_of_memory(how: str) -> None:
    if how == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
    if how == "torch":
        torch.empty(1 << 60)
    np.empty(1 << 50)


@pytest.mark.parametrize(
    ("how", "reason"), [("cuda", "Tried to allocate"), ("torch", "tried to allocate"), ("numpy", "Unable to allocate")]
)
def test_out_of_memory(how: str, reason: str) -> None:
    with (
        pytest.raises(ValueError, match=rf"^not enough memory for the cache: lower --size \(.*{reason}[^\n]*\)$"),
        within_memory("the cache", "lower --size"),
    ):
        run_out_of_memory(how)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"^a defect$"), within_memory("the cache", "lower --size"):
        raise RuntimeError("a defect")
