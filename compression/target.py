"""What is compressed and to what: the layer units before and after pruning, and what is refused about a target before
pairs are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression.algorithms import require_algorithm
from compression.pruning.plan import Pruning, planned
from compression.sensitivity import smallest
from compression.units import Unit, size_of, skeleton, uniform, units_of
from solon.errors import InputError
from solon.models.formats import FORMATS, KEEP, format_named

SHAPES = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Of a model before and after pruning."""

    whole: tuple[Unit, ...]
    """Units before pruning."""
    units: tuple[Unit, ...]
    """Units after pruning."""
    architecture: str
    reported: dict[str, list[Any]]
    """Settings of the configuration, before and after."""

    @classmethod
    def of(cls, model: Path, pruning: Pruning) -> Shapes:
        """Raises InputError for a model without such units, and for a share that removes nothing or everything."""
        whole: Any = skeleton(model)
        layers: Any = skeleton(model, planned(whole.config, pruning)) if pruning.is_any else whole
        found = cls(
            whole=units_of(whole),
            units=units_of(layers),
            architecture=type(layers).__name__,
            reported={name: [getattr(one.config, name, None) for one in (whole, layers)] for name in SHAPES},
        )
        if pruning.weights:
            _require_some_weights(found.units, pruning.weights)
        return found

    def budget(self, size: float) -> int:
        """Bytes of the linear layers at this share."""
        return int(size * size_of(self.whole, uniform(self.whole, KEEP)))


def searched(formats: Sequence[str], form: str) -> list[str]:
    """The formats that a unit may get, in the order of FORMATS."""
    return [name for name in FORMATS if name in (*formats, form) and name != KEEP]


def require_target(shapes: Shapes, *, form: str, size: float, formats: Sequence[str], algorithm: str) -> None:
    """Raises InputError for an unknown format, one that does not fit the layers, an algorithm that is not for the
    formats or the model, and a size that cannot be reached."""
    if form:
        format_named(form)
    names = searched(formats, form)
    fitting = [name for name in names if any(unit.fits(FORMATS[name]) for unit in shapes.units)]
    require_algorithm(algorithm, shapes.architecture, [form] if form else fitting)
    if form:
        uniform(shapes.units, form)
    if size:
        require_possible(shapes.units, names, shapes.budget(size))


def require_possible(units: Sequence[Unit], formats: Sequence[str], budget: int) -> None:
    """Raises InputError, with the smallest possible size, for a budget in bytes that cannot be kept."""
    least = sum(unit.size(FORMATS[smallest(unit, formats)]) for unit in units)
    whole = sum(unit.size(FORMATS[KEEP]) for unit in units)
    if least > budget:
        raise InputError(
            f"the linear layers take at least {least:,} bytes in these formats, expected at most {budget:,}; the "
            f"smallest size is {least / whole:.3f} of what they take now"
        )


def _require_some_weights(units: Sequence[Unit], share: float) -> None:
    narrow = min(matrix.columns for unit in units for matrix in unit.matrices)
    removed = narrow - round((1 - share) * narrow)
    if not 0 < removed < narrow:
        raise InputError(
            f"--prune weights={share:g} removes {removed} of {narrow} weights of a row, expected at least one and not "
            f"every weight; one is {1 / narrow:.3g}"
        )
