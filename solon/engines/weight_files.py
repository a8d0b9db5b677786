"""Writes the weights of a model as safetensors files, a tensor at a time, byte for byte as safetensors itself does.

    write_weights(folder, declared, tensors)     # tensors: (name, tensor) in any order, made while they are read

Names and shapes are known before any tensor is, so the header comes first and every tensor goes to its place. Of the
values only a piece is copied: what is in memory beside it is the tensor that the caller has just made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5 * 10**9
"""Bytes of tensors in one file, unless a single tensor is larger."""
ONE_FILE = 2**62
"""As `shard_bytes`: whatever the size."""
PIECE_BYTES = 2**24
"""Of a tensor that are converted and written at once."""
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "int16": "I16",
    "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "float32": "F32",
    "complex64": "C64", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip
"""Of dtypes in a header, in the format's order: tensors of the last ones come first, so that all are aligned."""
_PLACES = {name: place for place, name in enumerate(_NAMES)}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is written."""

    file: BinaryIO
    start: int


def weight_bytes_of(declared: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(map(_nbytes, declared.values()))


def write_weights(
    folder: Path,
    declared: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, Any] | None = None,
    stem: str = "model",
) -> list[str]:
    """Write `STEM.safetensors`, or several files of at most `shard_bytes` and their index; returns their names.

    declared: for each name a tensor of the shape and dtype that the file has; its values are not read, so it may be on
    the device `meta`. tensors: all of them, in any order; floating-point ones are converted. metadata: of the index.
    Raises OSError, and ValueError for a tensor that was not declared, is missing or has another shape.
    """
    shards = _shards(declared, shard_bytes)
    count = len(shards)
    names = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    names = names if count > 1 else [f"{stem}.safetensors"]
    places: dict[str, _Place] = {}
    with ExitStack() as opened:
        for name, members in zip(names, shards, strict=True):
            header, starts = _header({member: declared[member] for member in members})
            file = opened.enter_context((folder / name).open("xb"))
            file.write(header)
            places |= {member: _Place(file, len(header) + start) for member, start in starts.items()}
        for name, tensor in tensors:
            if name not in places or tuple(tensor.shape) != tuple(declared[name].shape):
                raise ValueError(f"got {name} of the shape {tuple(tensor.shape)}, expected those that were declared")
            _write(places.pop(name), tensor, declared[name])
            del tensor  # before the next one is made
        if places:
            raise ValueError(f"got no tensor {next(iter(places))}, {len(places)} of {len(declared)} are missing")
    if count > 1:
        index = {
            "metadata": {**(metadata or {}), "total_size": weight_bytes_of(declared)},
            "weight_map": {member: name for name, members in zip(names, shards, strict=True) for member in members},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return names


def _shards(declared: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Names of the tensors of each file, in their order."""
    found: list[list[str]] = [[]]
    held = 0
    for name, tensor in declared.items():
        size = _nbytes(tensor)
        if found[-1] and held + size > most:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return found


def _header(declared: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file, and where each tensor begins behind them."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in sorted(declared, key=lambda one: (-_PLACES[_dtype(declared[one])], one)):
        tensor = declared[name]
        starts[name], end = end, end + _nbytes(tensor)
        entries[name] = {
            "dtype": _NAMES[_dtype(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _write(place: _Place, tensor: Tensor, declared: Tensor) -> None:
    import torch

    flat = tensor.detach().reshape(-1)
    step = max(1, PIECE_BYTES // declared.element_size())
    place.file.seek(place.start)
    for first in range(0, flat.numel(), step):
        piece = flat[first : first + step].to(declared.dtype).to("cpu").contiguous()
        place.file.write(piece.view(torch.uint8).numpy().data)


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
