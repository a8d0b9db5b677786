"""A learner on disk: master weights and optimiser moments in safetensors, the rest in a small JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learners.core.optimizer import Optimizer
from solon.errors import InputError
from solon.host.file_modes import widen

TENSORS = "learner.safetensors"
COUNTERS = "learner.json"


def save_state(directory: Path, parts: Mapping[str, Optimizer], counters: Mapping[str, float]) -> None:
    """Write every part (`policy`, `critic`) and the counters, exact to the bit."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{name}": tensor.detach().to("cpu").contiguous()
        for part, optimizer in parts.items()
        for name, tensor in optimizer.tensors().items()
    }
    save_file(tensors, directory / TENSORS)
    widen(directory, TENSORS)
    (directory / COUNTERS).write_text(json.dumps(dict(counters), indent=1) + "\n")


def load_state(directory: Path, parts: Mapping[str, Optimizer]) -> dict[str, float]:
    """Read them back; returns the counters. Raises InputError when they are missing or belong to another learner."""
    try:
        tensors = load_file(directory / TENSORS)
        counters: dict[str, float] = json.loads((directory / COUNTERS).read_text())
        for part, optimizer in parts.items():
            prefix = f"{part}/"
            optimizer.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"the learner's state in {directory} does not fit this run ({error!r}); resume with the model and "
            "the [learn] section that the checkpoint was made with"
        ) from error
    return counters
