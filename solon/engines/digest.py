"""Digests of live tensors: deterministic, and cheap enough to take at every publication."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WHOLE_ELEMENTS = 1 << 20
"""Larger matrices are summed before they are hashed."""
_CHUNK_ELEMENTS = 1 << 19
"""Most elements that are widened to int64, or copied to the host, at once: 4 MiB."""


def digest_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and values. Copies at most a few MiB of a tensor.

    Exact for vectors and for tensors of up to a million elements. For larger matrices it hashes the sums of the bit
    patterns over rows and over columns: it always detects a change of one element and exchanged rows or columns, but
    not changes that cancel out in every row and in every column (+5 -5 in one row, -5 +5 below it). It finds damage and
    mixed versions, but does not protect against an adversary who chooses the values.
    """
    import torch

    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in named:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for piece in _bytes_of(tensor.detach()):
                digest.update(piece)
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    import torch

    # Integer sums of the bit patterns along both axes are exact in any order of summation; hashing a large model byte
    # by byte would take longer than loading it.
    wide = tensor.numel() > _WHOLE_ELEMENTS and tensor.ndim > 1
    for part in _sums(tensor) if wide else (tensor,):
        flat = part.reshape(-1)  # a view, unless a small matrix is stored in another order
        for start in range(0, max(1, flat.numel()), _CHUNK_ELEMENTS):
            yield _packed(flat[start : start + _CHUNK_ELEMENTS]).view(torch.uint8).cpu().numpy().data


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its elements contiguous. A tensor of at most one element counts as contiguous whatever its
    strides are, and viewing it as another type fails unless the last stride is 1."""
    import torch

    return tensor.contiguous() if tensor.numel() > 1 else tensor.clone(memory_format=torch.contiguous_format)


def _sums(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the bit patterns over the first axis, then over all others; int64. Widens one chunk at a time."""
    import torch

    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    rows = tensor.shape[0]
    width = tensor.numel() // rows
    down_C = torch.zeros(width, dtype=torch.int64, device=tensor.device)
    across_R = torch.zeros(rows, dtype=torch.int64, device=tensor.device)
    step = max(1, _CHUNK_ELEMENTS // width)
    for row in range(0, rows, step):
        part = _packed(tensor[row : row + step]).view(integer).reshape(-1, width)
        for column in range(0, width, _CHUNK_ELEMENTS):
            wide = part[:, column : column + _CHUNK_ELEMENTS].to(torch.int64)
            down_C[column : column + _CHUNK_ELEMENTS] += wide.sum(0)
            across_R[row : row + step] += wide.sum(1)
            del wide  # before the next chunk is allocated
    return down_C, across_R
