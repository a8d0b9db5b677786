"""Reads the header of a safetensors file and checks it against the file. Reads only the header, whatever the size.

8 bytes: length of the header | JSON: name -> dtype, shape, data_offsets | the data, without gaps
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from solon.errors import InputError, short

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as declared in a file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Tensors by name. Raises InputError when the file is truncated, or its header does not match its bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, f"it has {size} bytes, which hold no header")
            raw = json.loads(file.read(length).decode("utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({short(str(error))})") from None
    if not isinstance(raw, dict):
        raise _damaged(path, "its header is not an object")
    raw.pop("__metadata__", None)
    _check_spans([_entry(path, name, value) for name, value in raw.items()], size - 8 - length, path)
    return {name: StoredTensor(value["dtype"], tuple(value["shape"])) for name, value in raw.items()}


def _entry(path: Path, name: str, value: Any) -> tuple[int, int, str]:
    """(first byte, end, name) of a tensor whose shape and dtype fill its bytes."""
    try:
        bits, shape = _BITS[value["dtype"]], value["shape"]
        begin, end = value["data_offsets"]
        is_plain = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"it describes {short(name)} as {short(value)}") from None
    if not is_plain or prod(shape) * bits != 8 * (end - begin):
        raise _damaged(path, f"{short(name)} is {value['dtype']} {short(shape)}, which does not fill its bytes")
    return begin, end, name


def _check_spans(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    place = 0
    for begin, end, name in sorted(spans):
        if begin != place:
            kind = "overlaps another tensor" if begin < place else "leaves a gap before it"
            raise _damaged(path, f"{short(name)} begins at byte {begin}, which {kind}")
        place = end
    if place != size:
        kind = "is cut off" if size < place else "has bytes that belong to no tensor"
        raise _damaged(path, f"its tensors need {place} bytes, it holds {size}: it {kind}")


def _damaged(path: Path, how: str) -> InputError:
    return InputError(f"{path.name} is damaged: {how}; fetch it again")


def bits_of(dtype: str) -> int:
    """Bits of an element of a stored type; 8 for an unknown type."""
    return _BITS.get(dtype, 8)
