"""Weights on the grid of a format: the values that are served in place of them, and training through the rounding.

    on_grid(weight, format_named("w4a16-g64"))                  # what engines multiply with
    with trained_on_grid(model, {"model.layers.0.mlp.up_proj": format_named("w8a8")}):
        ...                                                      # weights are rounded in every forward pass

The arithmetic is that of compressed-tensors, so exported files hold exactly the weights that were trained. Gradients
pass the rounding unchanged (straight-through estimator, arXiv:1308.3432; LLM-QAT, arXiv:2305.17888).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from learners.core.adapters import Keep, as_it_is
from learners.core.sharding import full
from solon.errors import InputError
from solon.models.formats import Format, format_named, input_args, weight_args


def on_grid(weight: torch.Tensor, form: Format) -> torch.Tensor:
    """The values that are served in place of a weight matrix, in its dtype."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = weight_args(form)
    grouped = weight.reshape(len(weight), -1, form.group or weight.shape[-1])
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    found: torch.Tensor = fake_quantize(weight, scale.to(weight.dtype), zero, args)
    return found


def inputs_on_grid(values: torch.Tensor, module: nn.Module, form: Format) -> torch.Tensor:
    """The rounded inputs, with a scale for each token, that are multiplied in place of a layer's inputs."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args = input_args(form)
    scale, zero = compute_dynamic_scales_and_zp(value=values, args=args, module=module)
    found: torch.Tensor = fake_quantize(values, scale, zero, args)
    return found


class _Straight(torch.autograd.Function):
    """Rounded forward, unchanged backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `values`."""
    found: torch.Tensor = _Straight.apply(values, rounded)  # type: ignore[no-untyped-call]
    return found


class _OnGrid(nn.Module):
    def __init__(self, form: Format, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.form, self.dtype, self.is_on = form, dtype, True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return straight_through(weight, self.rounded(weight)) if self.is_on else weight

    @torch.no_grad()
    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        return on_grid(weight.detach().to(self.dtype or weight.dtype), self.form).to(weight.dtype)

    def round_inputs(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not self.is_on:
            return inputs
        return (straight_through(inputs[0], inputs_on_grid(inputs[0].detach(), module, self.form)), *inputs[1:])


class Grid:
    """Layers of a model whose weights, and inputs where the format has them, are rounded in every forward pass.

    `Grid(model, {"model.layers.0.mlp.up_proj": format_named("w8a8")})`; layers whose format keeps them stay as they
    are. dtype: of the weights that are served; scales are computed in it. None: their own.
    """

    name = ""
    """Of the format, where all layers have one."""

    def __init__(self, model: nn.Module, forms: Mapping[str, Format], dtype: torch.dtype | None = None) -> None:
        layers: dict[str, Any] = dict(model.named_modules())
        self._layers: dict[str, tuple[Any, _OnGrid]] = {}
        self._hooks = []
        for name, form in forms.items():
            if form.bits:
                layer, rounding = layers[name], _OnGrid(form, dtype)
                parametrize.register_parametrization(layer, "weight", rounding)
                self._layers[name] = layer, rounding
                if form.inputs:
                    self._hooks.append(layer.register_forward_pre_hook(rounding.round_inputs))

    def weights(self, *, rounded: bool = True) -> dict[str, torch.Tensor]:
        """By the names of the model's own parameters, detached: as they are served, or as they are trained."""
        served, trained = self.makers(as_it_is)
        return {name: make() for name, make in (served if rounded else trained).items()}

    def makers(
        self, keep: Keep, *, device: torch.device | None = None
    ) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, Callable[[], torch.Tensor]]]:
        """Makers of the weights as they are served and as they are trained, from what `keep` returned for each. device:
        where they are rounded, since another one may round a tie to the other side; None: where they are."""

        def trained(held: torch.Tensor) -> torch.Tensor:
            whole = full(held)
            return whole if device is None else whole.to(device)

        def served(held: torch.Tensor, rounding: _OnGrid) -> torch.Tensor:
            return rounding.rounded(trained(held))

        held = {
            f"{name}.weight": (keep(layer.parametrizations.weight.original.detach()), rounding)
            for name, (layer, rounding) in self._layers.items()
        }
        return (
            {name: partial(served, *both) for name, both in held.items()},
            {name: partial(trained, one) for name, (one, _) in held.items()},
        )

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without rounding."""
        for _, rounding in self._layers.values():
            rounding.is_on = False
        try:
            yield
        finally:
            for _, rounding in self._layers.values():
                rounding.is_on = True

    def remove(self) -> None:
        """Leave the weights as they were trained, before rounding."""
        for layer, _ in self._layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for hook in self._hooks:
            hook.remove()


@contextmanager
def trained_on_grid(model: nn.Module, forms: Mapping[str, Format], dtype: torch.dtype | None = None) -> Iterator[Grid]:
    """Weights of these layers, and inputs where the format has them, are rounded in every forward pass. dtype: as for
    `Grid`."""
    grid = Grid(model, forms, dtype)
    try:
        yield grid
    finally:
        grid.remove()


def grid_of(model: Any, name: str, dtype: torch.dtype | None = None) -> Grid:
    """Every linear layer but the head on the grid of a format. Raises InputError that names layers that do not fit."""
    form, head = format_named(name), model.get_output_embeddings()
    layers = {at: one for at, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head}
    wrong = [at for at, one in layers.items() if not form.fits(one.out_features, one.in_features)]
    if wrong:
        one = layers[wrong[0]]
        raise InputError(
            f"learn.grid = {name!r} needs matrices of a multiple of {form.rows} rows and {form.columns} columns, but "
            f"{wrong[0]} is {one.out_features} x {one.in_features} ({len(wrong)} layers do not fit); take another "
            "format or leave learn.grid out"
        )
    grid = Grid(model, dict.fromkeys(layers, form), dtype)
    grid.name = name
    return grid
