"""Removes weights in stages and trains what is left after each, so that the rest learns to do without them.

    prune(source, target, pairs, Pruning(weights=0.5), RepairConfig())   # a model of the same or a smaller shape

`weights` are set to 0, which makes files smaller only when they are packed, and no engine faster; `channels`, `groups`
and `layers` are cut out, so that every engine serves the smaller model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.live import load_model
from compression.pairs import Pair
from compression.pruning.importance import importance_of
from compression.pruning.masks import Masks, Method, cubic, masks_of
from compression.pruning.shapes import Cut, cut_out
from compression.repair import Distillation, RepairConfig, Repaired, save_trained
from compression.units import Unit, units_of
from solon.errors import InputError

STAGES = 4
SCORED = 256
"""Pairs that importance is measured on."""


class Pruning(BaseModel):
    """What is removed, as shares: `Pruning(weights=0.5)`, `Pruning(channels=0.25, layers=0.1)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: float = Field(0.0, ge=0, lt=1)
    """Of each row of every matrix."""
    channels: float = Field(0.0, ge=0, lt=1)
    """Of the inner channels of every feed-forward network."""
    groups: float = Field(0.0, ge=0, lt=1)
    """Of the attention heads of every layer, by groups that share keys and values."""
    layers: float = Field(0.0, ge=0, lt=1)
    """Of the layers."""
    method: Method = "alignment"
    """Which weights go first: by preferences and text, by weights and inputs, or by weights alone."""

    @property
    def is_any(self) -> bool:
        """Whether something is removed."""
        return bool(self.weights or self.channels or self.groups or self.layers)

    @classmethod
    def parsed(cls, text: str) -> Pruning:
        """`weights=0.5,method=wanda`. Raises InputError that names what was not understood."""
        found: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals or name.strip() not in cls.model_fields:
                raise InputError(
                    f"--prune got {part!r}, expected weights=SHARE, channels=SHARE, groups=SHARE, layers=SHARE or "
                    "method=alignment|wanda|magnitude, separated by commas"
                )
            found[name.strip()] = value.strip()
        try:
            return cls.model_validate(found)
        except ValueError as error:
            first = error.errors()[0]  # type: ignore[attr-defined]  # pydantic's
            raise InputError(f"--prune {first['loc'][0]}: got {first['input']!r}; {first['msg']}") from None


def prune(
    source: Path,
    target: Path,
    pairs: Sequence[Pair],
    pruning: Pruning,
    config: RepairConfig,
) -> Repaired:
    """Write the pruned and trained model. Raises InputError for a share that leaves nothing, RunFailedError when the
    loss is not finite."""
    teacher: Any = load_model(source)
    student: Any = copy.deepcopy(teacher).float()
    cut = Cut(channels=pruning.channels, groups=pruning.groups, layers=pruning.layers)
    if cut.is_any:
        student = cut_out(student, pairs[:SCORED], cut)
    course = Distillation(teacher, student, pairs, config)
    if pruning.weights:
        _in_stages(student, units_of(student), pairs[:SCORED], pruning, course)
    else:
        course.run(course.steps)
    save_trained(student.to(teacher.dtype), source, target)
    return course.report()


def _in_stages(
    student: Any, units: Sequence[Unit], pairs: Sequence[Pair], pruning: Pruning, course: Distillation
) -> None:
    """Sparsity rises by a cubic schedule over the first half of the course; scores are measured again at each stage."""
    for stage in range(1, STAGES + 1):
        student.eval()
        masks = masks_of(
            importance_of(student, units, pairs),
            sparsity=cubic(stage, STAGES, pruning.weights),
            method=pruning.method,
        )
        student.train()
        steps = course.steps // (2 * STAGES) if stage < STAGES else course.steps
        with masked(student, masks):
            course.run(steps)


class _Masked(nn.Module):
    def __init__(self, mask_OI: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask_OI", mask_OI)
        self.mask_OI: Tensor

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI * self.mask_OI

    def right_inverse(self, weight_OI: Tensor) -> Tensor:
        return weight_OI


@contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Weights outside of the masks are 0 in every forward pass, get no gradient, and stay 0 afterwards."""
    layers: dict[str, Any] = dict(model.named_modules())
    for name, mask_OI in masks.items():
        parametrize.register_parametrization(layers[name], "weight", _Masked(mask_OI))
    try:
        yield
    finally:
        for name in masks:
            parametrize.remove_parametrizations(layers[name], "weight", leave_parametrized=True)


@torch.no_grad()
def set_to_zero(model: nn.Module, masks: Masks) -> None:
    """Remove the weights outside of the masks for good."""
    layers: dict[str, Any] = dict(model.named_modules())
    for name, mask_OI in masks.items():
        layers[name].weight.mul_(mask_OI)
