"""Which weights a policy is served with: the newest checkpoint of a run, or a model as it is.

A checkpoint counts only when the bytes of its policy are those of its manifest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from solon.checkpoints.folder import CheckpointFolder, policy_digests
from solon.errors import InputError
from solon.feedback.judges.identity import weights_digest
from solon.models.certificate import CERTIFICATE, RECORD, require_certified
from solon.models.facts import read_facts
from solon.pipeline.canaries import Canaries


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One set of weights."""

    label: str
    """`step-000020`, or `weights-` and the digest."""
    path: str
    digest: str
    """Of the weights, 16 hexadecimal digits."""
    canaries: Canaries | None = None
    """None: there is nothing to attest an engine with."""


def checkpoints_of(model: str) -> CheckpointFolder | None:
    """The checkpoints of a run directory; None: it is no run."""
    folder = Path(model) / "checkpoints"
    return CheckpointFolder(folder) if folder.is_dir() else None


def newest_label(model: str) -> str:
    """Of the last checkpoint of a run, unread; empty: there is none."""
    folder = checkpoints_of(model)
    steps = folder.steps() if folder else []
    return CheckpointFolder.name(steps[-1]) if steps else ""


def newest(model: str) -> Version:
    """The last undamaged checkpoint of a run; or the model of a directory or hub name.

    Raises InputError when a run has no checkpoint, or all of them are damaged.
    """
    folder = checkpoints_of(model)
    if folder is None:
        inner = Path(model) / "model"
        path = inner if (inner / "config.json").is_file() else Path(model)
        digest = weights_digest(path)
        return Version(label=f"weights-{digest[:8]}", path=str(path) if path.exists() else model, digest=digest)
    damaged = []
    for step in reversed(folder.steps()):
        try:
            return _checkpoint(folder.path / CheckpointFolder.name(step))
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(f"{model} has no usable checkpoint: {damaged[0]}")
    raise InputError(f"{model} has no checkpoint yet, expected one; start the service when the run has written it")


def _checkpoint(path: Path) -> Version:
    digests = policy_digests(path)
    digest = hashlib.sha256("\n".join(f"{name} {value}" for name, value in sorted(digests.items())).encode())
    return Version(
        label=path.name, path=str(path / "policy"), digest=digest.hexdigest()[:16], canaries=Canaries.read(path)
    )


def held(version: Version, folder: Path) -> Version:
    """The same version in a folder of its own, so that a run which removes old checkpoints does not remove it while it
    is loaded. Files are linked; copied on another file system. Raises InputError when they are gone already."""
    target = Path(tempfile.mkdtemp(prefix=f"{version.label}-", dir=folder))
    try:
        for source in sorted(Path(version.path).iterdir()):
            if source.is_file():
                _link(source, target / source.name)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise InputError(f"{version.path} cannot be kept for its server: {error.strerror}; it may be gone") from None
    return replace(version, path=str(target))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def require_certificate(model: str, *, where: str, others: Sequence[str] = ()) -> None:
    """Raises InputError for a compressed model without a certificate that says `accept`. others: roles that are enough
    beside that of a policy."""
    path = Path(model)
    if (path / RECORD).is_file():
        require_certified(path, where=where, allow="allow_uncertified = true", others=others)
        return
    if not (path / "config.json").is_file() or not read_facts(path).quantisation:
        return
    raise InputError(
        f"{where}: {model} is compressed and has no {CERTIFICATE}, so nothing says whether it is still aligned; "
        "evaluate it, or set allow_uncertified = true"
    )
