"""The payload of a weight update: writing it with one copy, verifying it, reading it without a copy."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solon.errors import AttestationError
from solon.records import Weights

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_ORDER = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Types in the order of safetensors: a file has the last ones first."""


def fingerprint(payload: NDArray[np.uint8]) -> str:
    """BLAKE3 digest of a payload, which identifies a set of weights: cryptographic like sha256, and four times as fast
    on hundreds of megabytes."""
    from blake3 import blake3

    return blake3(np.ascontiguousarray(payload).data).hexdigest()


def verify_fingerprint(weights: Weights, engine: str) -> None:
    """Raises AttestationError unless the payload is the published one."""
    received = fingerprint(weights.payload)
    if received != weights.fingerprint:
        raise AttestationError(
            f"engine {engine} received weights {weights.version} with digest {received[:12]}…, expected "
            f"{weights.fingerprint[:12]}…; the payload changed on its way, nothing was loaded"
        )


def pack(tensors: Mapping[str, torch.Tensor]) -> NDArray[np.uint8]:
    """The bytes of a safetensors file with these tensors, read-only, written once: the same bytes as
    `safetensors.torch.save`, which copies them twice. Takes tensors of any device and layout."""
    import torch

    files = {str(getattr(torch, name)): code for code, name in _DTYPES.items()}
    # As safetensors does: wide types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-_ORDER.index(files[str(item[1].dtype)]), item[0]))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": files[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    payload = np.empty(8 + len(header) + end, np.uint8)
    payload[:8] = np.frombuffer(len(header).to_bytes(8, "little"), np.uint8)
    payload[8 : 8 + len(header)] = np.frombuffer(header, np.uint8)
    place = 8 + len(header)
    for _, tensor in ordered:
        if size := tensor.numel() * tensor.element_size():
            target = torch.from_numpy(payload[place : place + size]).view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor.detach())
            place += size
    payload.flags.writeable = False
    return payload


def named_tensors(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the safetensors payload, by name, in file order; read-only views.

    Raises AttestationError when the payload is not a readable safetensors file.
    """
    import torch

    payload = weights.payload
    try:
        head = int(payload[:8].view("<u8")[0])
        header = json.loads(payload[8 : 8 + head].tobytes())
    except (ValueError, IndexError) as error:
        raise AttestationError(
            f"weights {weights.version} are not a safetensors file ({error}); send what safetensors.torch.save returns"
        ) from error
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        start, end = (8 + head + offset for offset in entry["data_offsets"])
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        yield name, _tensor(payload[start:end], dtype, entry["shape"])


def run_length(versions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Policy versions of successive tokens as segments.

    >>> run_length([3, 3, 4])
    ((3, 2), (4, 1))
    """
    return tuple((version, len(list(tokens))) for version, tokens in itertools.groupby(versions))


def _tensor(data: NDArray[np.uint8], dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    import torch

    if data.size == 0:
        return torch.empty(shape, dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    with warnings.catch_warnings():
        # The object store returns read-only memory, for which torch only has a warning. Engines copy from these
        # tensors and never into them.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(data).view(dtype).reshape(shape)
