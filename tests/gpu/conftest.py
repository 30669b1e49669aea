"""Tests that need a GPU, and of Python packages torch, triton, numpy and pytest only: `make gpu-check`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# triton_cases stands there.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "kernels"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch finds none"))
