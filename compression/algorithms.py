"""How weights are rounded: algorithms, what each is for, and the layers whose ranges it evens out before rounding.

`rtn` rounds to the nearest value. `gptq` passes rounding errors on to weights that are rounded later
(arXiv:2210.17323). `smoothquant` first moves the range of inputs to the weights that multiply them (arXiv:2211.10438),
for formats whose inputs are rounded, then does as `gptq`. `awq` first scales the columns of int4 weights whose inputs
are large (arXiv:2306.00978), then rounds to the nearest value.

Both scale the rows of the layer before, a norm or a linear one, by the inverse: before rounding, the model computes the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.units import Assignment, Matrix, Unit
from solon.errors import InputError, nearest
from solon.models.formats import FORMATS, KEEP, Format, format_of

if TYPE_CHECKING:
    from torch import nn

ALGORITHMS = ("rtn", "gptq", "smoothquant", "awq")
CALIBRATED = ("gptq", "smoothquant", "awq")
"""Those that read calibration data."""
RECOVERY = ("gptq", "awq", "smoothquant")
"""In the order in which recovery tries them."""
LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures where nothing but the named layers reads what is scaled, and norms multiply by their weight."""
_FORMS = {"smoothquant": "w8a8 or fp8", "awq": "an int4 format such as w4a16-g64"}
_NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
_LINEAR = {"o": "v_proj", "down": "up_proj"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Layers whose columns are scaled, and the layer before, whose rows are scaled by the inverse."""

    before: str
    layers: tuple[str, ...]


def is_for(algorithm: str, form: Format) -> bool:
    """Whether an algorithm does more for a format than the rounding that it ends with."""
    if algorithm == "awq":
        return bool(form.bits) and not form.inputs
    return form.inputs if algorithm == "smoothquant" else bool(form.bits)


def require_algorithm(algorithm: str, architecture: str, formats: Iterable[str]) -> None:
    """Raises InputError for an unknown algorithm, one that is for none of the formats, and one that does not know the
    architecture."""
    formats = [name for name in formats if name != KEEP]
    if algorithm not in ALGORITHMS:
        raise InputError(
            f"got the algorithm {algorithm!r}, expected one of {', '.join(ALGORITHMS)}{nearest(algorithm, ALGORITHMS)}"
        )
    if algorithm not in _FORMS:
        return
    if not any(is_for(algorithm, format_of(name)) for name in formats):
        got = ", ".join(formats) or "none but keep"
        raise InputError(
            f"{algorithm} is for {_FORMS[algorithm]}, got the formats {got}; name such a format, or take gptq"
        )
    if architecture not in LLAMA_LIKE:
        raise InputError(
            f"{algorithm} does not know which layers of {architecture} follow which, expected one of "
            f"{', '.join(LLAMA_LIKE)}; take gptq or rtn"
        )


def others(algorithm: str, architecture: str, assignment: Assignment) -> list[str]:
    """Algorithms that recovery tries after this one, at the same bytes."""
    forms = [FORMATS[name] for name in set(assignment.values())]
    known = RECOVERY if architecture in LLAMA_LIKE else ("gptq",)
    return [one for one in known if one != algorithm and any(is_for(one, form) for form in forms)]


def scaled_layers(model: nn.Module, units: Sequence[Unit], assignment: Assignment, algorithm: str) -> list[Scaled]:
    """What an algorithm scales: layers of the units whose format it is for. Raises InputError as `require_algorithm`,
    and when a layer is missing."""
    require_algorithm(algorithm, type(model).__name__, set(assignment.values()))
    if algorithm not in _FORMS:
        return []
    known = dict(model.named_modules())
    matrices = {matrix.name: matrix for unit in units for matrix in unit.matrices}
    chosen = [unit for unit in units if is_for(algorithm, format_of(assignment[unit.name]))]
    found = [one for unit in chosen for one in _scaled(unit, matrices, algorithm)]
    if missing := next((one for one in found if one.before not in known), None):
        raise InputError(
            f"{algorithm} found no layer {missing.before}, expected one before {', '.join(missing.layers)}; take gptq "
            "or rtn"
        )
    if not found:
        raise InputError(f"{algorithm} found no layer before those that it is for; take gptq or rtn")
    return found


def _scaled(unit: Unit, matrices: Mapping[str, Matrix], algorithm: str) -> Iterator[Scaled]:
    kind, first = unit.name.rpartition(".")[2], unit.matrices[0]
    block = first.name.rpartition(".")[0]
    if kind in _NORMS:
        before = f"{block.rpartition('.')[0]}.{_NORMS[kind]}"
        yield Scaled(before=before, layers=tuple(matrix.name for matrix in unit.matrices))
    elif algorithm == "awq" and kind in _LINEAR:
        before = f"{block}.{_LINEAR[kind]}"
        # Heads that share keys and values repeat rows: there is no one row for a column.
        if before in matrices and matrices[before].rows == first.columns:
            yield Scaled(before=before, layers=(first.name,))
