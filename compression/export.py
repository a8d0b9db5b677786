"""Writes a model with the formats of an assignment, in the compressed-tensors format that vLLM and Transformers
load."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compression.algorithms import CALIBRATED, scaled_layers
from compression.distil import save_trained
from compression.live import load_model
from compression.llm_compressor import write_compressed
from compression.quantise import PACKAGES, calibration_digest, weight_bytes
from compression.units import IGNORED, Assignment, Unit, skeleton
from compression.written import require_whole
from solon.engines.model_files import copy_companions
from solon.errors import InputError
from solon.feedback.judges.identity import weights_digest
from solon.host.ballast import disk_errors, is_no_space
from solon.models.certificate import RECORD
from solon.models.formats import FORMATS, KEEP, input_args, weight_args
from solon.models.unrounded import read_unrounded, trained_format

MOST_SCALED = 128
"""Sequences that `awq` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The content of `compression.json`, which marks a model that was compressed here."""

    source_digest: str
    algorithm: str
    assignment: dict[str, str]
    weight_bytes: int
    source_weight_bytes: int
    calibration_digest: str
    versions: dict[str, str]


def export(
    source: Path,
    target: Path,
    units: Sequence[Unit],
    assignment: Assignment,
    *,
    algorithm: str = "rtn",
    calibration: Sequence[Sequence[int]] = (),
    is_changed: bool = False,
    original: Path | None = None,
) -> Exported:
    """Write the compressed copy beside its destination and rename it. calibration: token ids, for the algorithms that
    read data; is_changed: the source is a pruned copy, which is written also where every unit is kept; original: what
    the source was made from. What was trained on the grid of the assignment is rounded from the weights before
    rounding, to exactly what was trained.

    Raises InputError when nothing is compressed, the algorithm does not fit the formats or the model, the target
    exists, or the disk is full; RunFailedError when what was written is not whole.
    """
    if target.exists():
        raise InputError(f"{target} exists, expected a new directory; remove it or choose another")
    groups, kept = _groups(units, assignment)
    if not groups and not is_changed:
        raise InputError("every unit is kept as it is, so there is nothing to write; ask for a smaller size")
    scaled = scaled_layers(skeleton(source), units, assignment, algorithm) if groups else []
    sequences = calibration if algorithm in CALIBRATED else ()
    if algorithm == "awq":
        sequences = sequences[:MOST_SCALED]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(), tempfile.TemporaryDirectory(dir=target.parent, prefix=".compressing-") as scratch:
            written = Path(scratch) / "model"
            if groups:
                unrounded = algorithm == "rtn" and _is_on_grid(source, units, assignment)
                start = _before_rounding(source, Path(scratch)) if unrounded else source
                write = partial(write_compressed, algorithm=algorithm, scaled=scaled, sequences=sequences, ignore=kept)
                layers = write(start, written, groups=groups)
                require_whole(source, written, layers)
                copy_companions(source, written)
            else:
                shutil.copytree(source, written)
            record = Exported(
                source_digest=weights_digest(original or source),
                algorithm=algorithm,
                assignment=dict(assignment),
                weight_bytes=weight_bytes(written),
                source_weight_bytes=weight_bytes(original or source),
                calibration_digest=calibration_digest(sequences) if sequences else "",
                versions={package: version(package) for package in PACKAGES},
            )
            (written / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            written.rename(target)
    except OSError as error:
        if not is_no_space(error):
            raise
        raise InputError(f"the disk of {target.parent} is full; free some space, then start again") from None
    return record


def _is_on_grid(source: Path, units: Sequence[Unit], assignment: Assignment) -> bool:
    """Whether a model was trained on the grid that it is to be written in."""
    form = trained_format(source)
    return bool(form) and all(assignment[unit.name] == form for unit in units)


def _before_rounding(source: Path, scratch: Path) -> Path:
    """A copy of a model that was trained on a grid, with its weights before rounding."""
    model: Any = load_model(source)
    weights = read_unrounded(source)
    if unread := sorted(model.load_state_dict(weights, strict=False).unexpected_keys):
        raise InputError(
            f"{source} holds weights before rounding under names that its architecture does not have, such as "
            f"{unread[0]}; remove its folder `unrounded` to compress the rounded ones"
        )
    place = scratch / "unrounded"
    save_trained(model, source, place)
    return place


def _groups(units: Sequence[Unit], assignment: Assignment) -> tuple[Mapping[str, Any], list[str]]:
    """Schemes with their matrices; and the matrices that are kept, the head included."""
    from compressed_tensors.quantization import QuantizationScheme

    groups = {}
    for name, form in FORMATS.items():
        chosen = [matrix.name for unit in units if assignment[unit.name] == name for matrix in unit.matrices]
        if form.bits and chosen:
            groups[name.replace("-", "_")] = QuantizationScheme(
                targets=chosen, weights=weight_args(form), input_activations=input_args(form) if form.inputs else None
            )
    kept = [matrix.name for unit in units if assignment[unit.name] == KEEP for matrix in unit.matrices]
    return groups, [*(f"re:.*{name}$" for name in IGNORED), *kept]
