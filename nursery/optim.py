"""Muon for the matrices inside the layers, Adam for everything else.

Orthogonalised momentum (Keller Jordan's Muon) needs about half the steps that Adam needs on these networks,
and steps are what a growing machine pays for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic Newton-Schulz iteration that pushes all singular values near one.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_WARMUP_STEPS = 30
_DECAY_FROM = 0.4


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one."""

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(mean, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """A matrix with the same singular vectors and singular values near one."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return torch.as_tensor(x.T if tall else x)


class Schooling:
    """Both optimisers under one schedule: warm up, hold, fall to zero at the last step."""

    def __init__(self, *modules: nn.Module, steps: int, adam_lr: float = 3e-3, muon_lr: float) -> None:
        named = [pair for module in modules for pair in module.named_parameters()]
        matrices = [p for name, p in named if "layers." in name and p.ndim == 2]
        others = [p for name, p in named if not ("layers." in name and p.ndim == 2)]
        self._parameters = [p for _, p in named]
        self._optimisers: list[Any] = [torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]
        if matrices:
            self._optimisers.append(Muon(matrices, lr=muon_lr))
        self._base = [o.param_groups[0]["lr"] for o in self._optimisers]
        self._steps = steps
        self.step_number = 0

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        return self.step_number / self._steps

    def update(self, loss: Tensor) -> None:
        """One step on a loss."""
        factor = min(1.0, (self.step_number + 1) / _WARMUP_STEPS)
        factor *= min(1.0, (1 - self.progress) / (1 - _DECAY_FROM))
        for optimiser, base in zip(self._optimisers, self._base, strict=True):
            optimiser.param_groups[0]["lr"] = base * factor
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        self.step_number += 1
