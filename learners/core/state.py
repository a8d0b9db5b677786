"""A learner on disk: master weights and optimiser moments, and the counters in a small JSON.

A learner of one process writes one safetensors file. Ranks write what each keeps, in the format of torch's distributed
checkpoint. A learner of any number of ranks reads both.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learners.core.leading import alone_led
from learners.core.optimizer import Optimizer
from learners.core.ranks import ALONE, Ranks
from solon.errors import InputError, one_line
from solon.host.ballast import is_no_space
from solon.host.file_modes import widen
from solon.runs.directory import DiskFullError

TENSORS = "learner.safetensors"
SHARDS = "learner.shards"
COUNTERS = "learner.json"


def save_state(
    directory: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, float], ranks: Ranks = ALONE
) -> None:
    """Write the tensors of every part (`policy`, `critic`) and the counters, exact to the bit. All ranks call it
    together. Raises OSError, and DiskFullError that names the rank whose part did not fit."""
    directory.mkdir(parents=True, exist_ok=True)
    if ranks.is_alone:
        whole = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(whole, directory / TENSORS)
        widen(directory, TENSORS)
    else:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        # A step may run at the same time: its operations belong to another group.
        group = ranks.beside.get_group()
        try:
            save(dict(tensors), storage_writer=FileSystemWriter(directory / SHARDS), process_group=group)
        except CheckpointException as error:  # no Exception: the cause of every rank is in it
            raise _first_failure(error.failures, directory, ranks) from None
    with alone_led(ranks) as leading:
        if leading:
            widen(directory / SHARDS)
            (directory / COUNTERS).write_text(json.dumps(dict(counters), indent=1) + "\n")


def _first_failure(failures: Mapping[int, Any], directory: Path, ranks: Ranks) -> BaseException:
    """The error of the first rank that could not write its part; of a full disk with the number of the rank."""
    rank = next((one for one in sorted(failures) if is_no_space(failures[one][0])), min(failures))
    cause: BaseException = failures[rank][0]
    if not is_no_space(cause):
        return cause
    who = f"rank {rank} of {ranks.size}"
    return DiskFullError(
        f"the part of {who} of the learner's state does not fit into {directory}: {os.strerror(errno.ENOSPC)}", who=who
    )


def load_state(directory: Path, parts: Mapping[str, Optimizer]) -> dict[str, float]:
    """Read them back, whatever the number of ranks that wrote them; returns the counters. Raises InputError when they
    are missing or belong to another learner."""
    try:
        if (directory / SHARDS).is_dir():
            tensors: Mapping[str, Tensor] = _read_shards(directory / SHARDS, parts)
        else:
            tensors = _OfFile(directory / TENSORS)
        counters: dict[str, float] = json.loads((directory / COUNTERS).read_text())
        for part, optimizer in parts.items():
            prefix = f"{part}/"
            own = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
            optimizer.restore(_Renamed(tensors, own))
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"the learner's state in {directory} does not fit this run ({error!r}); resume with the model and "
            "the [learn] section that the checkpoint was made with"
        ) from error
    return counters


class _OfFile(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for: ranks keep a part of one at a time."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")
        self._names: list[str] = list(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        found: Tensor = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Renamed(Mapping[str, Tensor]):
    """The same under other names."""

    def __init__(self, tensors: Mapping[str, Tensor], keys: Mapping[str, str]) -> None:
        self._tensors, self._keys = tensors, keys

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._keys[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def tensors_of(parts: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Parameters and moments of every part, under the names that files have."""
    return {f"{part}/{name}": tensor for part, one in parts.items() for name, tensor in one.tensors().items()}


def _read_shards(directory: Path, parts: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """What ranks have written, divided as the parameters of this learner are."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(directory)
    written = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for part, optimizer in parts.items():
        for name, parameter in optimizer.parameters.items():
            for kind in ("parameter", "exp_avg", "exp_avg_sq"):
                if (key := f"{part}/{kind}/{name}") in written:
                    tensors[key] = torch.zeros_like(parameter.detach())
            if (key := f"{part}/step/{name}") in written:
                tensors[key] = torch.zeros(())
    if missing := sorted(set(written) - set(tensors)):
        raise KeyError(f"no parameter for {missing[0]}, {len(missing)} in all")
    try:
        load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    except CheckpointException as error:  # no Exception: the cause of every rank is in it
        raise ValueError(f"{one_line(str(next(iter(error.failures.values()))[0]), longest=300)}") from None
    return tensors
