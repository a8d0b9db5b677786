"""What a learner may keep in host memory while a GPU computes: the frozen reference.

A layer is copied to the device when it computes, and the copy is dropped after it. The embedding, the head and what
else is outside of layers are there for the whole pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learners.core.config import TrainerConfig
from learners.core.sharding import layers_of
from solon.errors import InputError


def refuse_without_effect(config: Any, device: torch.device) -> None:
    """Raises InputError for settings that move something to host memory, when the learner computes there."""
    if device.type != "cpu" or not isinstance(config, TrainerConfig):
        return
    if names := config.offloaded:
        raise InputError(
            f"{' and '.join(f'learn.{name}' for name in names)} with a learner that computes on the CPU, whose memory "
            "is the host's already; remove it, or give the learner a GPU with learn.num_gpus"
        )


def compute_from_host(network: nn.Module, device: torch.device) -> None:
    """Keep the parameters of a frozen network in host memory and let it compute on a device. Raises InputError for a
    network without repeated layers."""
    network.cpu()
    layers = layers_of(network)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    for layer in layers:
        _Fetched(layer, [*layer.parameters()], device)
    _Fetched(network, [p for p in network.parameters() if id(p) not in inside], device)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


class _Fetched:
    """Parameters that are on the device during the forward pass of their module."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter], device: torch.device) -> None:
        self._device = device
        # Copies from pages that stay where they are do not wait for the processor.
        self._kept = [(p, p.data.pin_memory() if device.type == "cuda" else p.data) for p in parameters]
        for parameter, host in self._kept:
            parameter.data = host
        module.register_forward_pre_hook(self._fetch)
        module.register_forward_hook(self._drop, always_call=True)

    @torch.no_grad()
    def _fetch(self, *_: Any) -> None:
        for parameter, host in self._kept:
            # A copy also where the device is the host.
            parameter.data = torch.empty_like(host, device=self._device).copy_(host, non_blocking=True)

    def _drop(self, *_: Any) -> None:
        for parameter, host in self._kept:
            parameter.data = host


def on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, in pages that a GPU can read and write directly where the tensor is on one."""
    copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor)
