"""Chunks of a policy version: cut from a stream of tensors, and read again as tensors without a copy.

The learner's side is an iterator of (name, tensor) in a fixed order, from which one chunk at a time is made:

    chunks = cut(named)              # a generator: yields chunks, returns their leaves
    weights = packed(7, named)       # all at once, for a process that holds both sides

A tensor on a CPU, contiguous and in its own dtype, is not copied: its chunk is a view of it, valid until the tensor
changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from solon.engines.digest_tree import by_chunk, leaves_of, root_of
from solon.errors import AttestationError
from solon.records import Chunk, Leaf, Weights

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 128 << 20
"""Bound of a chunk. Fewer bytes make more references; a process holds up to two chunks beside its weights."""


def cut(
    named: Iterable[tuple[str, torch.Tensor]], *, bound: int = CHUNK_BYTES
) -> Generator[Chunk, None, tuple[Leaf, ...]]:
    """Yields chunks of at most `bound` bytes; returns all leaves.

    Tensors of one module and its children (`self_attn.q_proj.weight`, `self_attn.k_proj.weight`) stay together: an
    engine that joins them keeps the first until the last is there. Such a group beyond the bound is a chunk of its own.
    """
    leaves: list[Leaf] = []
    number = 0
    chunk: list[tuple[str, torch.Tensor]] = []
    for group in _groups(named):
        if chunk and _nbytes(chunk) + _nbytes(group) > bound:
            yield _packed_chunk(chunk, number, leaves)
            number, chunk = number + 1, []
        chunk += group
        del group  # the next is made before this name gets it
    if chunk:
        yield _packed_chunk(chunk, number, leaves)
    return tuple(leaves)


def packed(
    version: int, named: Iterable[tuple[str, torch.Tensor]], *, bound: int = CHUNK_BYTES, **rest: Any
) -> Weights:
    """Weights with copies of these tensors. rest: the canaries (none: `()`)."""
    return collected(_as_weights(version, named, bound, **{"canary_token_ids": (), "canary_logprobs": ()} | rest))


def collected(publishing: Generator[Chunk, None, Weights]) -> Weights:
    """The weights of a publication within one process; its chunks are copied, as a store copies them."""
    chunks: list[Chunk] = []
    while True:
        try:
            chunk = next(publishing)
        except StopIteration as end:
            manifest: Weights = end.value
            return replace(manifest, chunks=tuple(chunks))
        chunks.append(tuple(_frozen(data.copy()) for data in chunk))


def tensors_of(leaves: Sequence[Leaf], chunk: Chunk) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a chunk: read-only views. Raises AttestationError when bytes and leaf do not fit."""
    return [(leaf.name, _tensor(leaf, data)) for leaf, data in zip(leaves, chunk, strict=True)]


def named_tensors(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors by name, read-only views; each chunk is opened when its first tensor is asked for."""
    for number, leaves in enumerate(by_chunk(weights)):
        yield from tensors_of(leaves, weights.chunks[number])


class SentTensors(Mapping[str, "torch.Tensor"]):
    """The published tensors by name, for a comparison: opens the chunk of a name and keeps the last one open."""

    def __init__(self, weights: Weights) -> None:
        self._chunks = weights.chunks
        self._by_chunk = by_chunk(weights)
        self._places = {leaf.name: leaf.chunk for leaf in weights.leaves}
        self._open: tuple[int, dict[str, torch.Tensor]] = (-1, {})

    def __getitem__(self, name: str) -> torch.Tensor:
        number = self._places[name]
        if self._open[0] != number:
            self._open = (-1, {})  # before the next is opened
            self._open = (number, dict(tensors_of(self._by_chunk[number], self._chunks[number])))
        return self._open[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _as_weights(
    version: int, named: Iterable[tuple[str, torch.Tensor]], bound: int, **rest: Any
) -> Generator[Chunk, None, Weights]:
    leaves = yield from cut(named, bound=bound)
    return Weights(version=version, chunks=(), leaves=leaves, fingerprint=root_of(leaves), **rest)


def _groups(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Adjacent tensors of one module and its children."""
    group: list[tuple[str, torch.Tensor]] = []
    owner = None
    for name, tensor in named:
        if (key := name.split(".")[:-2]) != owner and group:
            yield group
            group = []
        owner = key
        group.append((name, tensor))
        del tensor
    if group:
        yield group


def _nbytes(named: Sequence[tuple[str, torch.Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named)


def _packed_chunk(named: list[tuple[str, torch.Tensor]], number: int, leaves: list[Leaf]) -> Chunk:
    """The bytes of these tensors; their leaves are appended. Empties `named`, so that a copy replaces its tensor."""
    described = [(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in named]
    if named[0][1].device.type == "cuda":
        chunk = _from_device(named)
    else:
        chunk = []
        while named:
            chunk.append(_bytes_of(named.pop(0)[1]))
    leaves += leaves_of(described, tuple(chunk), number=number)
    return tuple(chunk)


def _from_device(named: list[tuple[str, torch.Tensor]]) -> list[NDArray[np.uint8]]:
    """The bytes of tensors on a GPU in one piece of pinned memory, which the driver writes without a copy of its own;
    torch keeps the piece for the next chunk. Empties `named`."""
    import torch

    device = named[0][1].device
    host = torch.empty(_nbytes(named), dtype=torch.uint8, pin_memory=True)
    chunk, start = [], 0
    while named:
        flat = named.pop(0)[1].detach().contiguous().reshape(-1)
        chunk.append(host[start : start + flat.nbytes])
        if flat.numel():
            chunk[-1].copy_(flat.view(torch.uint8), non_blocking=True)
        start += flat.nbytes
    torch.cuda.current_stream(device).synchronize()
    return [part.numpy() for part in chunk]


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def _frozen(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data.flags.writeable = False
    return data


def _tensor(leaf: Leaf, data: NDArray[np.uint8]) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, leaf.dtype)
    if data.nbytes != int(np.prod(leaf.shape, dtype=np.int64)) * dtype.itemsize:
        raise AttestationError(
            f"tensor {leaf.name} came as {data.nbytes} bytes, expected {leaf.dtype} of shape {leaf.shape}; publish "
            "it again"
        )
    if not data.size:
        return torch.empty(leaf.shape, dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    with warnings.catch_warnings():
        # The object store returns read-only memory, for which torch only has a warning. Engines copy from these
        # tensors and never into them.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(data).view(dtype).reshape(leaf.shape)
