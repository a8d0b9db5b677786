"""Checkpoints: written beside their place, checked, then renamed into it; `LATEST` last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.errors import RunFailedError

if TYPE_CHECKING:
    from actors.learner import RemoteLearner


async def save_checkpoint(
    directory: Path, learner: RemoteLearner, *, step: int, ledger: dict[str, Any], config_hash: str
) -> Path:
    """`directory/step-NNNNNN` with the policy in Hugging Face format, critic, optimiser, ledger and manifest."""
    final = directory / f"step-{step:06d}"
    scratch = directory / f".step-{step:06d}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    await learner.save(str(scratch.resolve()))
    if not any(path.is_file() for path in scratch.rglob("*")):
        raise RunFailedError(
            f"the learner saved nothing into {scratch}; expected a folder that its machine shares: put the run "
            "directory on a shared file system"
        )
    (scratch / "ledger.json").write_text(json.dumps(ledger, indent=2) + "\n")
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    manifest = {
        "step": step,
        "config_hash": config_hash,
        "files": {str(path.relative_to(scratch)): _sha256(path) for path in files},
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in (*files, scratch / "manifest.json"):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    scratch.replace(final)
    latest = directory / "LATEST.tmp"
    latest.write_text(final.name + "\n")
    _sync(latest)
    latest.replace(directory / "LATEST")
    return final


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
