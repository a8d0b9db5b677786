"""How the weights of a linear layer are stored: formats that vLLM serves, their sizes, and the shapes that they need.

Bytes count scales. `w4a16-g128`: int4 weights, one scale for 128 of a row; on a CPU vLLM needs rows and columns that
are multiples of 32. `w8a8`: int8 weights, one scale a row, int8 inputs with one scale a token. `fp8`: the same in
eight-bit floating point (E4M3). `keep`: as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from solon.errors import InputError, nearest

KEEP = "keep"
INPUT_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to store a weight matrix. Format(name="w4a16-g64", bits=4, group=64, inputs=False, columns=64,
    rows=32)"""

    name: str
    bits: int
    """Of a weight; 0: it is kept."""
    group: int = 0
    """Weights of a row that share a scale; 0: the whole row."""
    inputs: bool = False
    """Inputs have eight bits too, with one scale a token."""
    kind: Literal["int", "float"] = "int"
    """The numbers that weights and inputs are rounded to."""
    columns: int = 1
    """The width must be a multiple of this."""
    rows: int = 1
    """And the height of this: kernels work on blocks."""

    def fits(self, rows: int, columns: int) -> bool:
        """Whether a matrix of this shape can be stored so."""
        return rows % self.rows == 0 and columns % self.columns == 0

    def size(self, rows: int, columns: int, itemsize: int) -> int:
        """Bytes of a matrix and its scales. itemsize: bytes of a number of the model."""
        if not self.bits:
            return rows * columns * itemsize
        scales = rows * (columns // self.group if self.group else 1)
        return rows * columns * self.bits // 8 + scales * itemsize


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format(name="w4a16-g128", bits=4, group=128, columns=128, rows=32),
        Format(name="w4a16-g64", bits=4, group=64, columns=64, rows=32),
        Format(name="w4a16-g32", bits=4, group=32, columns=32, rows=32),
        Format(name="w8a8", bits=8, inputs=True, columns=16, rows=16),
        Format(name="fp8", bits=8, inputs=True, kind="float", columns=16, rows=16),
        Format(name=KEEP, bits=0),
    )
}
"""Smallest first."""

SEARCHED = tuple(name for name in FORMATS if name != "fp8")
"""From which formats are chosen when none are named. `fp8` takes the bytes of `w8a8`, and saves time on some GPUs
only."""

EXPERIMENTAL: dict[str, Format] = {"w3a16-g128": Format(name="w3a16-g128", bits=3, group=128, columns=128, rows=32)}
"""Measured in memory and served by nothing: they show what damage is."""


def format_of(name: str) -> Format:
    """A format of either kind."""
    return FORMATS.get(name) or EXPERIMENTAL[name]


def format_named(name: str) -> Format:
    """Raises InputError for an unknown name."""
    if name not in FORMATS:
        raise InputError(f"got the format {name!r}, expected one of {', '.join(FORMATS)}{nearest(name, FORMATS)}")
    return FORMATS[name]


def weight_args(one: Format) -> Any:
    """The arguments of compressed-tensors for the weights of a format."""
    from compressed_tensors.quantization import QuantizationArgs

    strategy = {"strategy": "group", "group_size": one.group} if one.group else {"strategy": "channel"}
    return QuantizationArgs(num_bits=one.bits, type=one.kind, symmetric=True, **strategy)


def input_args(one: Format) -> Any:
    """The arguments of compressed-tensors for the inputs of a format that rounds them."""
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(num_bits=INPUT_BITS, type=one.kind, symmetric=True, strategy="token", dynamic=True)
