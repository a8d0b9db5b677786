"""The units of a model whose format is decided together: matrices that engines fuse must share one.

Of each decoder layer: `qkv`, `o`, `gate_up`, `down`. The head and the embeddings are no units: they stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.loading import model_class
from solon.errors import InputError
from solon.models.formats import FORMATS, KEEP, SEARCHED, Format, format_named, format_of

if TYPE_CHECKING:
    from torch import nn

FUSED = {
    "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv"),
    "o": ("o_proj", "out_proj", "dense"),
    "gate_up": ("gate_proj", "up_proj", "gate_up_proj", "fc1", "dense_h_to_4h"),
    "down": ("down_proj", "fc2", "dense_4h_to_h"),
}
IGNORED = ("lm_head", "embed_out", "score", "classifier")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A linear layer."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Matrices that share a format. Unit(name="0.qkv", matrices=(...), itemsize=4)"""

    name: str
    """Layer and kind."""
    matrices: tuple[Matrix, ...]
    itemsize: int
    """Bytes of a number of the model."""

    def fits(self, one: Format) -> bool:
        """Whether every matrix can be stored so."""
        return all(one.fits(matrix.rows, matrix.columns) for matrix in self.matrices)

    def size(self, one: Format) -> int:
        """Bytes in this format."""
        return sum(one.size(matrix.rows, matrix.columns, self.itemsize) for matrix in self.matrices)


Assignment = Mapping[str, str]
"""The format of each unit."""


def units_of(model: nn.Module) -> tuple[Unit, ...]:
    """The units of a language or reward model, which may be on the meta device. Raises InputError for a mixture of
    experts and for a model without linear layers."""
    itemsize = next(model.parameters()).element_size()
    found: dict[str, list[Matrix]] = {}
    for name, layer in _linears(model):
        found.setdefault(_unit_name(name), []).append(
            Matrix(name=name, rows=layer.out_features, columns=layer.in_features)
        )
    if not found:
        raise InputError(f"{type(model).__name__} has no linear layers that are compressed here; serve it as it is")
    return tuple(Unit(name=name, matrices=tuple(some), itemsize=itemsize) for name, some in found.items())


def skeleton(source: Path, config: Any = None) -> nn.Module:
    """A model's layers without weights. config: shapes other than the model's own. Raises InputError for an
    architecture that Transformers does not know."""
    import torch
    from transformers import AutoConfig

    try:
        config = config or AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = model_class(source).from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source} cannot be read as a language or reward model: {error}") from None
    return model


def uniform(units: Sequence[Unit], name: str) -> dict[str, str]:
    """One format for all units. Raises InputError that names the matrices which do not fit, and formats that do."""
    chosen = format_named(name)
    wrong = [matrix for unit in units for matrix in unit.matrices if not chosen.fits(matrix.rows, matrix.columns)]
    if wrong:
        shown = "; ".join(f"{one.name} is {one.rows} x {one.columns}" for one in wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        others = [one for one in SEARCHED if one != KEEP and all(unit.fits(FORMATS[one]) for unit in units)]
        raise InputError(
            f"{name} needs matrices of a multiple of {chosen.rows} rows and {chosen.columns} columns, but "
            f"{shown}{more}; "
            + (f"take {' or '.join(others)}" if others else "no format fits every layer: give --size instead")
        )
    return {unit.name: name for unit in units}


def forms_of(units: Sequence[Unit], assignment: Assignment) -> dict[str, Format]:
    """The format of each matrix."""
    return {matrix.name: format_of(assignment[unit.name]) for unit in units for matrix in unit.matrices}


def size_of(units: Sequence[Unit], assignment: Assignment) -> int:
    """Bytes of all units."""
    return sum(unit.size(FORMATS[assignment[unit.name]]) for unit in units)


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    from torch import nn

    if any("expert" in name for name, _ in model.named_parameters()):
        raise InputError("a mixture of experts is not compressed here, expected a dense model; serve it as it is")
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] not in IGNORED:
            yield name, layer


def _unit_name(name: str) -> str:
    layer, own = _LAYER.search(name), name.rpartition(".")[2]
    kind = next((kind for kind, names in FUSED.items() if own in names), own)
    return f"{layer.group(1)}.{kind}" if layer else name
