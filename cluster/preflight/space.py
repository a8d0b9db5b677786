"""Whether the disk of the run directory has room for the checkpoints of a run. An estimate from the model's files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from cluster.config.run_file import RunFile
from solon.models.facts import ModelFacts, model_folder, read_facts

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "F32": 4, "BF16": 2, "F16": 2, "F64": 8}
"""Bytes of a number, by its name in run files and in safetensors files."""
STATE_BYTES = 12
"""Bytes per trained parameter: itself and two moments of AdamW, float32."""
_GIB = 2**30


def checkpoint_bytes(run: RunFile, policy: ModelFacts) -> int:
    """The size of a checkpoint, without the groups in flight; 0: the files of the policy do not say."""
    parameters = sum(math.prod(tensor.shape) for tensor in policy.tensors.values())
    kept = max((WIDTHS.get(tensor.dtype, 2) for tensor in policy.tensors.values()), default=2)
    served = run.learn.serving_dtype
    width = WIDTHS.get(served, 4 if run.learn.num_gpus == 0 else kept)
    networks = 0 if run.learn.lora is not None else 1 + (run.learn.advantages == "gae")
    return parameters * (width + STATE_BYTES * networks)


def remarks_on_space(run: RunFile, root: Path, *, there: int = 0) -> list[str]:
    """A warning when the disk is too small. root: the folder of run directories. there: bytes of the checkpoints that
    a resumed run already has."""
    folder = model_folder(run.policy)
    size = checkpoint_bytes(run, read_facts(folder)) if folder is not None else 0
    free = free_at(root)
    if not size or free is None:
        return []
    every = -(-run.steps // run.checkpoint_every) if run.checkpoint_every else 1
    kept = min(run.checkpoint_keep or every, every + 1)
    wanted = size * (kept + 1)
    if wanted <= free + there:
        return []
    return [
        f"the disk of the run directory has {free / _GIB:.1f} GiB free; a checkpoint takes about {size / _GIB:.1f} "
        f"GiB, so the {kept} that stay (checkpoint_keep = {run.checkpoint_keep}) and the one being written take "
        f"{wanted / _GIB:.1f} GiB; free some space, lower checkpoint_keep, or set SOLON_RUNS to a larger disk"
    ]


def free_at(root: Path) -> int | None:
    """Free bytes where a folder is, or will be made; None: its file system does not say."""
    place = root.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None
