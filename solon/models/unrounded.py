"""The weights before rounding of a policy that was trained on the grid of a format.

Its files hold the rounded weights, which is what was trained and served. Rounding those again would give others, since
the scales follow from the largest weights: `solon compress` rounds the weights of this folder, and gets exactly what
was trained.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from solon.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "unrounded"
"""Beside the model's files, in a folder of its own: engines read every safetensors file next to config.json."""
STEM = "weights"
_WEIGHTS, _FORMAT = f"{STEM}.safetensors", "format.json"


def mark_unrounded(model: Path, form: str) -> None:
    """Say that the weights in the folder are those of the model's files before rounding."""
    of = {"format": form, "rounded": _digest(model)}
    (model / FOLDER / _FORMAT).write_text(json.dumps(of) + "\n", encoding="utf-8")


def trained_format(model: Path) -> str:
    """The format that a model was trained on; empty: on none. Raises InputError for a damaged file."""
    path = model / FOLDER / _FORMAT
    if not path.is_file():
        return ""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["format"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged, expected the name of a format; remove {path.parent}") from None


def read_unrounded(model: Path) -> dict[str, Tensor]:
    """The weights before rounding. Raises InputError for a damaged file, and for one that belongs to other weights than
    those beside it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = model / FOLDER / _WEIGHTS
    settings = json.loads((model / FOLDER / _FORMAT).read_text(encoding="utf-8"))
    if settings.get("rounded") != _digest(model):
        raise InputError(
            f"{path} belongs to other weights than those of {model}, which were changed; remove {path.parent} to "
            "compress the changed ones"
        )
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); train the model again, or remove {path.parent}") from None
    return found


def _digest(model: Path) -> str:
    """Of the weight files beside config.json."""
    whole = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()
