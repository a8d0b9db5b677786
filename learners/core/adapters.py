"""Merging adapters into the weights that they adapt, one layer at a time, from tensors of any moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from learners.core.sharding import full

NAME = "default"
"""Of peft's only adapter."""


class Keep(Protocol):
    """Holds a tensor as it is now, for later. changes: training moves it."""

    def __call__(self, tensor: Tensor, *, changes: bool = True) -> Tensor: ...


def as_it_is(tensor: Tensor, *, changes: bool = True) -> Tensor:  # noqa: ARG001
    """The tensor itself."""
    return tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """Two small matrices whose product is added to a weight."""

    down: Tensor
    up: Tensor
    scale: float
    is_transposed: bool
    """The weight has inputs in its rows, as embeddings do."""

    @torch.no_grad()
    def merged(self, weight: Tensor, device: torch.device) -> Tensor:
        """The weight with the adapter, computed on the device. On ranks, all call it together."""
        product = full(self.up).to(device) @ full(self.down).to(device)
        return full(weight).to(device) + (product.T if self.is_transposed else product) * self.scale


def adapter_of(layer: Any, keep: Keep) -> Adapter:
    """The adapter of one of peft's layers, of what `keep` returns for its matrices."""
    if NAME in layer.lora_A:
        down, up, is_transposed = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, bool(layer.fan_in_fan_out)
    else:
        down, up, is_transposed = layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME], True
    return Adapter(keep(down.detach()), keep(up.detach()), float(layer.scaling[NAME]), is_transposed)
