"""Muon for the weight matrices, AdamW for the embedding and the norms, and the learning-rate schedule.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MUON_LR = 0.01
ADAM_LR = 3e-3
WEIGHT_DECAY = 0.01
WARM_UP_SHARE = 0.005
DECAY_SHARE = 0.3


class Muon(Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix.

    Matrices of one shape are orthogonalized together: one batched product is faster than many small ones.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient. `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group["lr"], group["momentum"])

    def _update(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        gradients = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            gradients.append(parameter.grad.lerp(state["momentum"], momentum))  # Nesterov
        updates = orthogonalize(torch.stack(gradients)).to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        scale = max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * WEIGHT_DECAY)
            parameter.add_(update, alpha=-lr * scale)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Singular values to about one, by Newton-Schulz iteration in bfloat16. matrices: [n, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at zero; values end in about [0.7, 1.2]
    x: Tensor = matrices.bfloat16()
    is_tall: bool = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    if is_tall:
        x = x.mT
    return x


class Optimizers:
    """The two optimizers and their common schedule."""

    def __init__(self, model: nn.Module) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._muon = Muon(matrices, MUON_LR)
        self._adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)

    def step(self, progress: float) -> None:
        """Update the weights and clear the gradients. progress: share of the run that is over, in [0, 1]."""
        factor = schedule(progress)
        for optimizer, base in ((self._muon, MUON_LR), (self._adam, ADAM_LR)):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def schedule(progress: float) -> float:
    """Learning-rate factor: short warm-up, long flat part, linear decay to zero."""
    return max(0.0, min(1.0, progress / WARM_UP_SHARE + 0.01, (1 - progress) / DECAY_SHARE))
