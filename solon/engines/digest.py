"""Digests of live tensors: exact, deterministic, and cheap enough to take at every publication."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WHOLE_ELEMENTS = 1 << 20


def digest_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and values; another bit in any one tensor gives another digest."""
    import torch

    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in named:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes_of(tensor.detach()))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    tensor = tensor.contiguous()
    if tensor.numel() > _WHOLE_ELEMENTS and tensor.ndim > 1:
        # Integer sums of the bit patterns along both axes are exact in any order of summation and take no copy
        # of the tensor; hashing a large model byte by byte would take longer than loading it.
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        bits = tensor.view(integer).reshape(tensor.shape[0], -1)
        tensor = torch.cat([bits.sum(0, dtype=torch.int64), bits.sum(1, dtype=torch.int64)])
    return tensor.reshape(-1).view(torch.uint8).cpu().numpy().data
