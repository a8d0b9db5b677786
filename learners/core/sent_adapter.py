"""The adapters of a policy as files have them: factors under PEFT's names, with the scale inside of B.

A layer computes W x + B (A x); A is [R, I], B is [O, R] of rank R, W is [O, I] (or transposed, in GPT-2's layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learners.core.adapters import NAME
from learners.core.sharding import full
from learners.core.skeleton import LazyTensors
from solon.engines.adapter_names import factor_names
from solon.errors import InputError


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a model that have factors, by their Hugging Face names."""
    return {name: layer for name, layer in model.named_modules() if NAME in getattr(layer, "lora_A", ())}


def refuse_unservable(model: Any) -> None:
    """Raises InputError for adapters that an engine does not take apart from their weights: those of the embedding and
    of the output head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeds = {name for name, layer in model.named_modules() if NAME in getattr(layer, "lora_embedding_A", ())}
    heads = {name for name, layer in adapted_layers(model).items() if any(layer is end for end in ends)}
    if found := sorted(embeds | heads):
        raise InputError(
            f"learn.lora.target_modules includes {', '.join(found)}, expected layers between embedding and head with "
            "publish.way = 'adapter'; leave them out, or set publish.way = 'merged'"
        )


def rank_of(model: nn.Module) -> int:
    """The largest rank of an adapter."""
    return max(int(layer.r[NAME]) for layer in adapted_layers(model).values())


def factor_makers(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Makers of all factors, in the order of the layers; the scale is multiplied into B."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, layer in adapted_layers(model).items():
        a, b = factor_names(name)
        makers[a] = partial(full, layer.lora_A[NAME].weight)
        makers[b] = partial(_scaled, layer)
    return makers


def plain_makers(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Makers of the weights below the adapters, by their Hugging Face names."""
    return {f"{name}.weight": partial(full, layer.base_layer.weight) for name, layer in adapted_layers(model).items()}


def as_computed(
    merged: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    transposed: frozenset[str] = frozenset(),
) -> LazyTensors:
    """What an engine computes with that holds plain weights and factors in this dtype: their sum in float32, so that
    nothing is rounded after the factors. transposed: weights that are [I, O]."""

    def summed(name: str) -> Tensor:
        a, b = factor_names(name.removesuffix(".weight"))
        delta = factors[b].to(dtype).float() @ factors[a].to(dtype).float()
        return plain[name].to(dtype).float() + (delta.T if name in transposed else delta)

    def cast(name: str) -> Tensor:
        tensor = merged[name]
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return LazyTensors({name: partial(summed if name in plain else cast, name) for name in merged})


def transposed_weights(model: nn.Module) -> frozenset[str]:
    """Weights of adapted layers that are [I, O]."""
    return frozenset(
        f"{name}.weight" for name, layer in adapted_layers(model).items() if getattr(layer, "fan_in_fan_out", False)
    )


def _scaled(layer: Any) -> Tensor:
    scaled: Tensor = full(layer.lora_B[NAME].weight).detach() * layer.scaling[NAME]
    return scaled
