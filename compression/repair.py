"""Trains a model on the grid that is exported, so that a compressed copy prefers again what the original preferred.

DPO on the original's own preferences, with the original as reference, through weights that are rounded in every forward
pass (straight-through estimator, arXiv:1308.3432; quantisation-aware DPO: arXiv:2407.03051). What is saved are the
weights before rounding: rounding them again gives exactly the weights that were trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from compression.formats import Format, format_of, input_args
from compression.live import on_grid
from compression.pairs import Pair
from compression.units import Assignment, Unit
from learners.core.course import CourseReport, run_course
from learners.core.policy import Policy
from learners.core.publish import Publisher
from learners.direct.config import DirectConfig
from learners.direct.pairs import AnswerPair
from learners.objectives.dpo import DPOObjective, with_reference


class _Straight(torch.autograd.Function):
    """Rounded forward, unchanged backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _straight(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Straight.apply(values, rounded)  # type: ignore[no-untyped-call]
    return found


class _OnGrid(nn.Module):
    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _straight(weight, on_grid(weight.detach(), self._form))
        return found


def repair(
    source: Path,
    target: Path,
    units: Sequence[Unit],
    assignment: Assignment,
    pairs: Sequence[Pair],
    config: DirectConfig,
) -> CourseReport:
    """Write the trained weights of a model, to be exported with the same assignment.

    pairs: what the original prefers. Raises RunFailedError when the loss is not finite.
    """
    torch.set_num_threads(config.threads)
    policy = Policy(config, model=str(source), temperature=1.0, reference=False)
    asked = [AnswerPair(prompt=one.prompt, first=one.chosen, second=one.rejected) for one in pairs]
    known = with_reference(policy, asked, config)
    with trained_on_grid(policy.base, units, assignment):
        report = run_course(DPOObjective(policy, config), known, config)
    Publisher(policy, model=str(source), dtype=config.serving_dtype).save(target)
    return report


@contextmanager
def trained_on_grid(model: nn.Module, units: Sequence[Unit], assignment: Assignment) -> Iterator[None]:
    """Weights, and inputs where the format has them, are rounded in every forward pass; gradients pass unchanged."""
    layers = dict(model.named_modules())
    rounded, hooks = [], []
    for unit in units:
        form = format_of(assignment[unit.name])
        for matrix in unit.matrices if form.bits else ():
            layer = layers[matrix.name]
            parametrize.register_parametrization(layer, "weight", _OnGrid(form))
            rounded.append(layer)
            if form.inputs:
                hooks.append(layer.register_forward_pre_hook(_rounded_inputs))
    try:
        yield
    finally:
        for layer in rounded:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for hook in hooks:
            hook.remove()


def _rounded_inputs(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args, plain = input_args(), inputs[0].detach()
    scale, zero = compute_dynamic_scales_and_zp(value=plain, args=args, module=module)
    return (_straight(inputs[0], fake_quantize(plain, scale, zero, args)), *inputs[1:])
