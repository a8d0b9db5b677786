"""AdamW with a norm bound, a learning rate that is a function of the step, and plain tensors as state.

The moments may be kept in host memory: the CPU then holds a copy of the weights, computes the step from the gradients
that it is sent, and sends the weights back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from learners.core.config import OptimizerConfig
from learners.core.offload import on_host
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
        *,
        offload: bool = False,
    ) -> None:
        """learning_rate: the peak, in place of the configuration's; schedule: factor on it at each step; ranks: those
        among which the network is divided; offload: keep moments in host memory and compute steps on the CPU."""
        self._ranks = ranks
        release(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._peak, self._schedule, self._max_norm = learning_rate, schedule, config.max_grad_norm
        self._masters: dict[str, Tensor] = dict(self.parameters)
        """What moves: the parameters, or copies of this rank's parts of them in host memory."""
        self._offload = offload
        if offload:
            self._masters = {name: on_host(local(p.detach())) for name, p in self.parameters.items()}
        matrices = [self._masters[name] for name, p in self.parameters.items() if p.ndim >= 2]
        vectors = [self._masters[name] for name, p in self.parameters.items() if p.ndim < 2]
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
        if self._offload:
            self._step_on_host()
        else:
            self._adam.step()
        self.clear()

    @torch.no_grad()
    def _step_on_host(self) -> None:
        for name, p in self.parameters.items():
            if p.ndim < 2:  # an objective may write to a vector, as to a critic's first bias
                self._masters[name].copy_(local(p))
            self._masters[name].grad = None if p.grad is None else local(p.grad).to("cpu")
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for name, p in self.parameters.items():
            local(p).copy_(self._masters[name], non_blocking=True)

    def clear(self) -> None:
        self._adam.zero_grad()
        for p in self.parameters.values():
            p.grad = None

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
            for key, value in self._adam.state.get(self._masters[name], {}).items():
                flat[f"{key}/{name}"] = self._as_part_of(p, value) if self._offload and key != "step" else value
        return flat

    def _as_part_of(self, parameter: Tensor, moment: Tensor) -> Tensor:
        """A moment in host memory as the part of a divided tensor that it is."""
        if not isinstance(parameter, DTensor):
            return moment
        return DTensor.from_local(
            moment, self._ranks.beside, parameter.placements, run_check=False, shape=parameter.shape,
            stride=parameter.stride(),
        )  # fmt: skip

    @torch.no_grad()
    def restore(self, flat: Mapping[str, Tensor]) -> None:
        """Restore the result of `tensors`. Raises KeyError or RuntimeError when it is of another network."""
        for name, p in self.parameters.items():
            p.copy_(placed_like(p, flat[f"parameter/{name}"]))
            master = self._masters[name]
            if self._offload:
                master.copy_(local(p))
            self._adam.state.pop(master, None)
            if f"exp_avg/{name}" in flat:
                moments = {key: placed_like(p, flat[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                if self._offload:
                    moments = {key: on_host(local(moment)) for key, moment in moments.items()}
                self._adam.state[master] = moments | {"step": flat[f"step/{name}"].to(master.device, copy=True)}
