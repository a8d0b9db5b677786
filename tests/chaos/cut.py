"""A file of a run that was killed is cut, in a copy of its directory: `doctor` and `--resume` must see it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from solon.checkpoints.folder import CheckpointFolder
from solon.cli.doctor import run_doctor
from solon.runs.integrity import examine, read_records


def cut_complaints(directory: Path, rng: random.Random) -> list[str]:
    """The complaints about a whole directory and about one with a file cut to half. `--resume` reports the findings of
    `examine`."""
    checkpoint = CheckpointFolder(directory / "checkpoints").last()
    records = None if checkpoint is None else read_records(checkpoint.path)
    if records is None:
        return []
    found = [f"false alarm: {damage.text}" for damage in examine(directory, records, thorough=True).damages]
    parts = [path.relative_to(directory).as_posix() for path in directory.glob("*/*.parquet")]
    name = rng.choice([*(name for name, extent in records.files.items() if extent.lines > 1), *parts])
    copy = directory.with_name(f"{directory.name}.cut")
    shutil.copytree(directory, copy)
    try:
        path = copy / name
        size = records.files[name].bytes if name in records.files else path.stat().st_size
        with path.open("rb+") as file:
            file.truncate(size // 2)
        if name not in [damage.name for damage in examine(copy, records, thorough=True).damages]:
            found.append(f"{name} was cut, and --resume does not see it")
        told = run_doctor(str(copy), thorough=True, as_json=True)
        if not any(name in line for lines in told["findings"].values() for line in lines):
            found.append(f"{name} was cut, and doctor does not say so")
    finally:
        shutil.rmtree(copy)
    return found
