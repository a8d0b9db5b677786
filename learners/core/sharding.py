"""Networks divided among ranks by FSDP2: each rank keeps a part of every parameter, its gradient and its moments.

Layers are gathered one at a time while they compute. Gradients are summed over the ranks, not averaged: losses are
divided by a denominator of the whole minibatch (`learners.core.ranks`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from learners.core.ranks import Ranks
from solon.errors import InputError


def shard(network: nn.Module, ranks: Ranks, *, compute: torch.dtype | None = None, offload: bool = False) -> None:
    """Divide a network among the ranks, in place: its repeated layers, then the rest of it. compute: dtype in which
    layers are gathered; None: that of the parameters. offload: every rank keeps its part in host memory.

    The values are those of the first rank, which sends a parameter at a time; the others may hold none (`meta`). A
    network that is divided already stays so. Call it before the optimiser is built. Raises InputError for a network
    without repeated layers.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    if ranks.is_alone or isinstance(network, FSDPModule):
        return

    layers = layers_of(network)
    if ranks.is_first:
        _send(network, ranks)
    policy = (
        MixedPrecisionPolicy()
        if compute is None
        else MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
    )
    place = CPUOffloadPolicy(pin_memory=ranks.mesh.device_type == "cuda") if offload else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy, offload_policy=place)
    fully_shard(network, mesh=ranks.mesh, offload_policy=place)
    for module in network.modules():
        # Neither switch reaches submodules. The factor alone asks gloo for an operation that it lacks.
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if not ranks.is_first:
        _receive(network, ranks, "cpu" if offload else ranks.mesh.device_type)


def _send(network: nn.Module, ranks: Ranks) -> None:
    """Give the other ranks every parameter and buffer, in the order of their names. A model may have made buffers of
    its own in a forward pass, so names and shapes go first."""
    values = _values(network)
    ranks.shared([(name, tensor.shape, tensor.dtype) for name, tensor in values])
    for _, tensor in values:
        distributed.broadcast(tensor.detach().to(ranks.mesh.device_type).contiguous(), 0)


@torch.no_grad()
def _receive(network: nn.Module, ranks: Ranks, kept: str) -> None:
    """Keep this rank's part of what the first rank sends, on the device `kept`."""
    device = ranks.mesh.device_type
    if any(tensor.is_meta for _, tensor in _values(network)):
        network.to_empty(device=kept)
    parameters = dict(network.named_parameters())
    for name, shape, dtype in ranks.shared(None):
        whole = torch.empty(shape, dtype=dtype, device=device)
        distributed.broadcast(whole, 0)
        if name in parameters:
            local(parameters[name]).copy_(local(placed_like(parameters[name], whole)))
        else:
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, whole)


def _values(network: nn.Module) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = [*network.named_parameters(), *network.named_buffers()]
    return sorted(found, key=lambda pair: pair[0])


def release(network: nn.Module) -> None:
    """Give back the parameters that a forward pass has gathered. Without a backward pass those outside of layers stay
    gathered, and a list of parameters would hold copies that are not trained."""
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The decoder layers of a network: the members of its longest list of modules, or none for a single layer. Raises
    InputError when a network of several modules has no list."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if lists:
        longest = max(lists, key=lambda some: sum(p.numel() for p in some.parameters()))
        return list(longest)
    if any(True for _ in network.children()):
        raise InputError(
            f"a {type(network).__name__} has no list of layers, expected one to divide among ranks; train it with "
            "num_ranks = 1"
        )
    return []


def full(tensor: Tensor) -> Tensor:
    """The whole of a parameter that is divided among ranks. Every rank must ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank keeps."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a tensor, whole or divided, as a parameter's part of it, on the parameter's device."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value.clone()
    found: Any = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return found  # type: ignore[no-any-return]
