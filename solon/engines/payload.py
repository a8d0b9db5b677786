"""Common to all engines: verify a weight payload and read it without a copy."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
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


def fingerprint(payload: NDArray[np.uint8]) -> str:
    """sha256 of a payload, which identifies a set of weights."""
    return hashlib.sha256(np.ascontiguousarray(payload).data).hexdigest()


def verify_fingerprint(weights: Weights, engine: str) -> None:
    """Raises AttestationError unless the payload is the published one."""
    received = fingerprint(weights.payload)
    if received != weights.fingerprint:
        raise AttestationError(
            f"engine {engine} received weights {weights.version} with sha256 {received[:12]}…, expected "
            f"{weights.fingerprint[:12]}…; the payload changed on its way, nothing was loaded"
        )


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
