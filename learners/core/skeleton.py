"""A model without storage that computes with given tensors, of which it holds one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name in a fixed order, each made on access and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def forward_by_layer(
    skeleton: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, input_BT: Tensor
) -> Tensor:
    """Logits, [B, T, V], of the skeleton with these tensors in this dtype.

    A layer's tensors are made when the layer is called and dropped when it returns; those outside of all layers (the
    embedding, the head) live for the whole pass. Raises RuntimeError or NotImplementedError for a model that uses a
    layer's tensors without calling the layer: give it all tensors at once (`layers_of(skeleton)` is then of no use).
    """
    layers = layers_of(skeleton)
    inside = {name: _layer_of(name, layers) for name in tensors}
    with _filled_on_call(layers, inside, tensors, dtype):
        rest = {name: _cast(tensors[name], dtype) for name, layer in inside.items() if layer is None}
        return _logits(skeleton, rest, input_BT)


def forward_at_once(skeleton: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, input_BT: Tensor) -> Tensor:
    """The same with a cast copy of all tensors."""
    return _logits(skeleton, {name: _cast(tensor, dtype) for name, tensor in tensors.items()}, input_BT)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The items of the outermost module lists, by name: the layers of a decoder."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{layer}.") for layer in found):
            found |= {f"{name}.{number}": layer for number, layer in enumerate(module)}
    return found


@contextmanager
def _filled_on_call(
    layers: Mapping[str, nn.Module], inside: Mapping[str, str | None], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[None]:
    names: dict[str, list[str]] = {}
    for name, layer in inside.items():
        if layer is not None:
            names.setdefault(layer, []).append(name)
    try:
        for at, own in names.items():
            _fill_on_call(layers[at], {name.removeprefix(f"{at}."): name for name in own}, tensors, dtype)
        yield
    finally:
        for at in names:
            layers[at].__dict__.pop("forward", None)


def _fill_on_call(layer: nn.Module, own: Mapping[str, str], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    plain = layer.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        state = {inner: _cast(tensors[name], dtype) for inner, name in own.items()}
        layer.__dict__["forward"] = plain  # `functional_call` calls the layer, hence this function, again
        try:
            return torch.func.functional_call(layer, state, arguments, named)
        finally:
            layer.__dict__["forward"] = forward

    layer.__dict__["forward"] = forward


def _layer_of(name: str, layers: Mapping[str, nn.Module]) -> str | None:
    parts = name.split(".")
    heads = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((head for head in heads if head in layers), None)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _logits(skeleton: nn.Module, state: dict[str, Tensor], input_BT: Tensor) -> Tensor:
    logits: Tensor = torch.func.functional_call(skeleton, state, (input_BT,), {"use_cache": False}).logits
    return logits
