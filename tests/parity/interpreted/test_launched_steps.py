"""Launched steps on Triton's kernels, sampling among them, give the tokens of plain steps in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from runner_pair import Pair, padded_plans
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pagoda.executor.device.graph import EagerGraph, Work

# What a host must wait for a GPU for, so that it cannot be captured.
WAITING = [f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")]


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        assert name not in WAITING, f"{name} would wait for the device"
        indices = args[1] if name == "aten::index" else ()
        assert not any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        return func(*args, **(kwargs or {}))


def capturable(work: Work) -> EagerGraph:
    """A graph that calls the function, and fails where capturing it on a GPU would."""

    def checked() -> Tensor:
        with _NoWaiting():
            return work()

    return EagerGraph(checked)


def test_the_same_tokens_as_plain_torch(tmp_path: Path) -> None:
    pair = Pair(
        tmp_path, device="cpu", dtype="float32", kernels="triton", plain_kernels="reference", make_graph=capturable
    )
    assert pair.ahead.model.kernels.name == "triton"
    assert pair.check(padded_plans(), lambda: 2) == 7 * 5 + 2 * 6 + 2 * 3
    assert pair.graphs.replays == {6: 7, 4: 2}
