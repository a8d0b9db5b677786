"""A model whose units change their format while it is in memory, on exactly the grid that is exported.

    live = LiveModel.load(Path("model"))
    with live.compressed({"0.qkv": "w4a16-g128"}):   # other units are kept
        ...

Weights are rounded to the nearest value of the grid (compressed-tensors' own arithmetic); inputs of `w8a8` and
`fp8` layers are rounded too, token by token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.loading import model_class, quiet
from compression.units import Assignment, Unit, units_of
from learners.core.grid import inputs_on_grid, on_grid
from solon.engines.transformers_model import decompress
from solon.models.formats import KEEP, Format, format_of

if TYPE_CHECKING:
    import torch
    from torch import nn


class LiveModel:
    """One copy of a model, and its units."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self.units: tuple[Unit, ...] = units_of(model)
        self.layers: dict[str, Any] = dict(model.named_modules())
        """By the names that matrices have."""

    @classmethod
    def load(cls, source: Path) -> LiveModel:
        """Raises what Transformers raises for an unreadable model."""
        return cls(load_model(source))

    @contextmanager
    def compressed(self, assignment: Assignment) -> Iterator[nn.Module]:
        """The model with these units compressed. Units that are not named are kept."""
        before: list[tuple[Any, torch.Tensor]] = []
        hooks = []
        try:
            for unit in self.units:
                form = format_of(assignment.get(unit.name, KEEP))
                if not form.bits:
                    continue
                for matrix in unit.matrices:
                    layer = self.layers[matrix.name]
                    before.append((layer, layer.weight.data))
                    layer.weight.data = on_grid(layer.weight.data, form)
                    if form.inputs:
                        hooks.append(layer.register_forward_pre_hook(partial(_rounded_inputs, form)))
            yield self.model
        finally:
            for layer, weight in before:
                layer.weight.data = weight
            for hook in hooks:
                hook.remove()


def load_model(source: Path) -> nn.Module:
    """A model as Transformers loads it, compressed ones included, without progress bars."""
    with quiet():
        model: nn.Module = model_class(source).from_pretrained(
            source, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        decompress(model)
    return model.eval()


def _rounded_inputs(form: Format, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs_on_grid(inputs[0], module, form), *inputs[1:])
