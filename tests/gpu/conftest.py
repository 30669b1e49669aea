"""Tests that need a GPU: `make gpu-check`.

Those of kernels need no Python packages but torch, triton, numpy and pytest; those of the runner need protobuf,
safetensors and tqdm, too, and the canary what the scheduler needs. Those of transfers need protobuf, and some of them
pyzmq.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# triton_cases and runner_pair stand there.
sys.path[:0] = [str(Path(__file__).parents[1] / "unit" / room) for room in ("kernels", "executor")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch finds none"))
