"""Weights on the grid of a format: the values that are served in place of them, and training through the rounding.

    on_grid(weight, format_named("w4a16-g64"))                  # what engines multiply with
    with trained_on_grid(model, {"model.layers.0.mlp.up_proj": format_named("w8a8")}):
        ...                                                      # weights are rounded in every forward pass

The arithmetic is that of compressed-tensors, so exported files hold exactly the weights that were trained. Gradients
pass the rounding unchanged (straight-through estimator, arXiv:1308.3432; LLM-QAT, arXiv:2305.17888).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from solon.models.formats import Format, input_args, weight_args


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
    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return straight_through(weight, on_grid(weight.detach(), self._form))


@contextmanager
def trained_on_grid(model: nn.Module, forms: Mapping[str, Format]) -> Iterator[None]:
    """Weights of these layers, and inputs where the format has them, are rounded in every forward pass."""
    layers = dict(model.named_modules())
    rounded, hooks = [], []
    for name, form in forms.items():
        if form.bits:
            layer = layers[name]
            parametrize.register_parametrization(layer, "weight", _OnGrid(form))
            rounded.append(layer)
            if form.inputs:
                hooks.append(layer.register_forward_pre_hook(_RoundedInputs(form)))
    try:
        yield
    finally:
        for layer in rounded:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for hook in hooks:
            hook.remove()


class _RoundedInputs:
    """A hook before a layer."""

    def __init__(self, form: Format) -> None:
        self._form = form

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        rounded = inputs_on_grid(inputs[0].detach(), module, self._form)
        return (straight_through(inputs[0], rounded), *inputs[1:])
