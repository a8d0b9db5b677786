"""AdamW with a norm bound, a learning rate that is a function of the step, and plain tensors as state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from learners.core.config import OptimizerConfig
from learners.core.ranks import ALONE, Ranks
from learners.core.sharding import local, placed_like, release


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters of one network.

    Matrices decay, vectors (norms, biases) do not.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        config: OptimizerConfig,
        schedule: Callable[[int], float],
        ranks: Ranks = ALONE,
    ) -> None:
        """learning_rate: the peak, in place of the configuration's; schedule: factor on it at each step; ranks: those
        among which the network is divided."""
        self._ranks = ranks
        release(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._peak, self._schedule, self._max_norm = learning_rate, schedule, config.max_grad_norm
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        self._adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=True,
        )

    def clip(self) -> float:
        """Scale the gradients down to the norm bound; returns the norm before scaling."""
        if self._ranks.is_alone:
            return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_norm))
        # Torch's norm of divided gradients is summed in float32 and in another order on every rank.
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        squares = [torch.linalg.vector_norm(one, dtype=torch.float64).square() for one in gradients if one.numel()]
        mine = float(torch.stack(squares).sum()) if squares else 0.0
        norm = math.sqrt(self._ranks.total([mine])[0])
        if norm > self._max_norm:
            torch._foreach_mul_(gradients, self._max_norm / (norm + 1e-6))
        return norm

    def apply(self, step: int) -> None:
        """Move the parameters at the rate of this step and clear the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = self._peak * self._schedule(step)
        self._adam.step()
        self.clear()

    def clear(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def not_finite(self) -> list[str]:
        """Names of the parameters whose gradient is not finite."""
        return [
            name
            for name, p in self.parameters.items()
            if p.grad is not None and not math.isfinite(float(local(p.grad).abs().sum()))
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments under flat names, for saving; a parameter that never moved has no moments. Those of
        a divided network are DTensors."""
        flat = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            flat |= {f"{key}/{name}": value for key, value in self._adam.state.get(p, {}).items()}
        return flat

    @torch.no_grad()
    def restore(self, flat: Mapping[str, Tensor]) -> None:
        """Restore the result of `tensors`. Raises KeyError or RuntimeError when it is of another network."""
        for name, p in self.parameters.items():
            p.copy_(placed_like(p, flat[f"parameter/{name}"]))
            self._adam.state.pop(p, None)
            if f"exp_avg/{name}" in flat:
                self._adam.state[p] = {key: placed_like(p, flat[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                self._adam.state[p]["step"] = flat[f"step/{name}"].to(p.device, copy=True)
