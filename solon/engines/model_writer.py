"""Writes a model as a Hugging Face directory, a parameter at a time. The directory appears whole or not at all.

    with whole_model(Path("models/policy")) as folder:
        write_model(network, folder, tensors)
        copy_companions(source, folder)

`tensors` may make each tensor when it is read: then the largest of them is in memory once, and not the model.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.engines.weight_files import ONE_FILE, SHARD_BYTES, write_weights
from solon.errors import InputError
from solon.host.ballast import disk_errors, is_no_space
from solon.host.whole_directory import new_directory
from solon.models.unrounded import FOLDER, STEM, mark_unrounded
from solon.runs.directory import DiskFullError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@contextmanager
def whole_model(place: Path) -> Iterator[Path]:
    """An empty folder beside `place`, which is flushed to disk and takes its place at the end. A model that is there
    stays as it is until then, and after an error.

    Raises InputError for a directory that holds something else than a model, DiskFullError.
    """
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file, expected a new directory; choose another one")
    if place.is_dir() and any(place.iterdir()) and not (place / "config.json").exists():
        raise InputError(f"{place} holds other files than a model, expected a new directory; choose another one")
    try:
        with disk_errors(), new_directory(place, replace=True) as scratch:
            yield scratch
    except OSError as error:
        if not is_no_space(error):
            raise
        free = shutil.disk_usage(place.parent).free
        raise DiskFullError(
            f"the disk of {place.parent} is full ({os.strerror(error.errno or 0)}): {place.name} does not fit, "
            f"{free / 2**20:,.1f} MiB are free; free some space, then start again"
        ) from None


def write_model(
    model: Any,
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write the configurations and the weights of a Transformers model into an existing folder; returns the names of
    the files of weights. A tied weight is written once.

    model: gives the architecture, and may be on the device `meta`. tensors: by its own names, without tied ones; None:
    those of the model. dtype: of floating-point weights; None: their own. Raises OSError.
    """
    given = own_tensors(model) if tensors is None else tensors
    hidden = set(model._keys_to_ignore_on_save or ())
    chosen = [name for name in given if name not in hidden]
    declared = declared_for(model, chosen, dtype)
    _write_configurations(model, folder, dtype)
    return write_weights(
        folder,
        declared,
        as_files(model, _Chosen(given, chosen)),
        shard_bytes=shard_bytes,
        metadata={"total_parameters": model.num_parameters()},
    )


def write_unrounded(model: Any, folder: Path, form: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write weights before rounding beside those of the grid of a format, which are in the folder already. model,
    tensors, dtype: as for `write_model`. Raises OSError."""
    (folder / FOLDER).mkdir()
    declared = declared_for(model, tensors, dtype)
    write_weights(folder / FOLDER, declared, as_files(model, tensors), stem=STEM, shard_bytes=ONE_FILE)
    mark_unrounded(folder, form)


def own_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers that belong to a model's files, by its own names; a tied one under one name."""
    tied = set(model.all_tied_weights_keys)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in tied}


def as_files(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names and in the shapes that files have, in a fixed order: one tensor, or one layer where the
    model joins tensors of files, at a time."""
    from transformers.core_model_loading import revert_weight_conversion

    nothing: dict[str, Tensor] = {}
    is_plain = getattr(model, "_weight_conversions", None) == [] or revert_weight_conversion(model, nothing) is nothing
    if is_plain:  # files have the model's own tensors
        yield from ((name, tensors[name]) for name in tensors)
        return
    for names in _by_layer(tensors):
        yield from revert_weight_conversion(model, {name: tensors[name] for name in names}).items()


def declared_for(model: Any, names: Iterable[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors without values, of the shapes and dtypes that files have of these tensors of a model."""
    shapes = model.state_dict()
    return dict(as_files(model, {name: _declared(shapes[name], dtype) for name in names}))


class _Chosen(Mapping[str, "Tensor"]):
    """Some of the tensors, each read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
        self._tensors, self._names = tensors, list(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _declared(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of the shape and dtype that a file has, without values."""
    import torch

    converted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=converted, device="meta")


def _write_configurations(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _by_layer(names: Iterable[str]) -> list[list[str]]:
    """Names of each layer, which no conversion of files crosses; those outside of all layers together."""
    found: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*?\.\d+\.", name)
        found.setdefault(layer[0] if layer else "", []).append(name)
    return list(found.values())
