"""Checkpoints: written to a scratch folder, verified, then renamed into place; `LATEST` last. A crash leaves either the
previous checkpoint or the new one, never a partial one.

    checkpoints/step-000040/
        policy/               Hugging Face directory
        learner.safetensors   weights and moments of policy and critic, exact to the bit; learner.json
        ledger.json           solon.ledger.snapshot: the held groups and their location
        held.parquet          groups generated and not trained yet; feedback.jsonl: their labels
        run.json              digests of constitution, prompts and models, running totals, scores, state of the watch
        records.json          counts and digests of the run's other files at that moment (solon.runs.integrity)
        manifest.json         sha256 of every file
    checkpoints/LATEST        the name of the last one
    checkpoints/aside/        checkpoints that a run abandoned by going back (`--from`)
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solon.errors import InputError, RunFailedError
from solon.files.json_text import json_text
from solon.ledger.snapshot import LedgerSnapshot
from solon.runs.integrity import RECORDS, Records, read_records

if TYPE_CHECKING:
    from solon.checkpoints.held_groups import Held

MANIFEST = "manifest.json"
LATEST = "LATEST"
CANARIES = "canaries.json"
"""Log-probs that attest an engine with the policy (`solon.pipeline.canaries`)."""
ASIDE = "aside"
"""Folder of abandoned checkpoints. They are never read and may be removed."""


class Manifest(BaseModel):
    """The files of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    config_hash: str
    files: dict[str, str]
    """sha256 by path within the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    ledger: LedgerSnapshot
    held: Mapping[int, Held]
    run: Mapping[str, Any]
    """The driver's state of the run."""
    records: Records | None = None
    """Lengths of the run's other files; None: written by a version that did not record them."""


class CheckpointFolder:
    """`runs/NAME/checkpoints`.

        with folder.writing(40) as scratch: ...      # the learner saves into it
        folder.finish(scratch, step=40, ...)
        checkpoint = folder.last()

    `failpoint(name)` is called between all stages of writing: tests kill the process there.
    """

    def __init__(self, path: Path, *, keep: int = 3) -> None:
        """keep: number of checkpoints to keep, the newest; 0: all."""
        self.path = path
        self._keep = keep
        self.failpoint: Callable[[str], None] = lambda name: None

    def begin(self, step: int) -> Path:
        """A scratch folder for the checkpoint of this step, with a name of its own: a learner that was given up, and
        whose machine returns, may still write into the one that it was told. Removes the remains of a killed process,
        so the caller must hold the lock of the run directory. Raises RunFailedError when the run directory is gone."""
        for gone in self.path.glob(".step-*.gone"):
            home = self.path / _home(gone)
            if home.exists():
                shutil.rmtree(gone, ignore_errors=True)
            else:  # killed after the old folder was renamed and before the new one took its place
                gone.replace(home)
        for old in self.path.glob(".step-*.tmp"):
            shutil.rmtree(old, ignore_errors=True)
        scratch = self.path / f".{_name(step)}.{secrets.token_hex(4)}.tmp"
        try:  # without parents: a run directory that was removed is not created again
            self.path.mkdir(exist_ok=True)
            scratch.mkdir()
        except FileNotFoundError:
            raise RunFailedError(f"{self.path.parent} is gone: it was removed or moved while the run used it") from None
        return scratch

    def finish(
        self,
        scratch: Path,
        *,
        step: int,
        config_hash: str,
        ledger: LedgerSnapshot,
        held: Iterable[Held],
        run: Mapping[str, Any],
        records: Records | None = None,
        spared: Iterable[int] = (),
    ) -> Path:
        """Complete the learner's files in `scratch` and put the folder in place. `spared` steps are kept beyond `keep`.

        Raises RunFailedError when the learner saved nothing in `scratch`.
        """
        if not any(path.is_file() for path in scratch.rglob("*")):
            raise RunFailedError(
                f"the learner saved nothing into {scratch}; expected a folder that its machine shares: put the run "
                "directory on a shared file system"
            )
        from solon.checkpoints.held_groups import write_held  # imported late: reading checkpoints needs no arrays

        self.failpoint("saved")
        write_held(scratch, held)
        (scratch / "ledger.json").write_text(ledger.model_dump_json(indent=1) + "\n")
        (scratch / "run.json").write_text(json_text(run, indent=1) + "\n")
        if records is not None:
            (scratch / RECORDS).write_text(records.model_dump_json(indent=1) + "\n")
        self.failpoint("written")
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        manifest = Manifest(
            step=step, config_hash=config_hash, files={str(path.relative_to(scratch)): _sha256(path) for path in files}
        )
        (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        for path in (*files, scratch / MANIFEST, *(p for p in scratch.rglob("*") if p.is_dir()), scratch):
            _sync(path)
        self.failpoint("synced")
        final = self.place(scratch, step=step)
        if self._keep:
            self.retire(keep=self._keep, spared=spared)
        return final

    def place(self, scratch: Path, *, step: int) -> Path:
        """Put a complete folder in its place and set `LATEST` to it."""
        final = self.path / _name(step)
        replaced = self.path / f".{_name(step)}.gone"
        if final.exists():
            final.replace(replaced)
        self.failpoint("replacing")
        scratch.replace(final)
        shutil.rmtree(replaced, ignore_errors=True)
        self.failpoint("renamed")
        self._point(final.name)
        self.failpoint("latest")
        return final

    @staticmethod
    def name(step: int) -> str:
        """`step-000040`."""
        return _name(step)

    @staticmethod
    def discard(scratch: Path) -> None:
        """Remove a scratch folder that did not become a checkpoint, to free its space; otherwise do nothing."""
        shutil.rmtree(scratch, ignore_errors=True)

    def set_aside(self, *, after: int) -> list[str]:
        """Move all checkpoints of later steps to `aside/` and set `LATEST` to this step, since the run goes back to it.
        Returns the names of the moved checkpoints."""
        self._point(_name(after))
        later = [step for step in self.steps() if step > after]
        for gone in self.path.glob(".step-*.gone"):
            if _home(gone) > _name(after):  # otherwise it would return to its old place
                shutil.rmtree(gone)
        aside = self.path / ASIDE
        for step in later:
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / _name(step), ignore_errors=True)
            (self.path / _name(step)).replace(aside / _name(step))
        _sync(self.path)
        return [_name(step) for step in later]

    def _point(self, name: str) -> None:
        latest = self.path / f"{LATEST}.tmp"
        latest.write_text(name + "\n")
        _sync(latest)
        latest.replace(self.path / LATEST)
        _sync(self.path)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, complete or damaged, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.path.glob("step-*") if path.is_dir())

    def candidates(self) -> list[Path]:
        """Every folder that may be a complete checkpoint, in the order in which `last` tries them."""
        found = [*self.path.glob("step-*"), *self.path.glob(".step-*.gone")]
        return sorted(found, key=lambda path: (_home(path), path.name), reverse=True)

    def last(self, *, damaged: list[str] | None = None) -> Checkpoint | None:
        """The last complete checkpoint, or None; the damage of newer ones is appended to `damaged`."""
        for path in self.candidates():
            try:
                return read_checkpoint(path)
            except InputError as error:
                if damaged is not None:
                    damaged.append(str(error))
        return None

    def size(self, step: int) -> int:
        """Bytes of the files of a checkpoint."""
        return folder_bytes(self.path / _name(step))

    def retire(self, *, keep: int, spared: Iterable[int] = ()) -> list[int]:
        """Remove all but the last `keep` and the spared ones; returns the removed steps."""
        kept = {*self.steps()[-keep:], *spared}
        gone = [step for step in self.steps() if step not in kept]
        for step in gone:
            # Renamed first: a half-removed folder must not look like a checkpoint.
            going = self.path / f".{_name(step)}.gone"
            shutil.rmtree(going, ignore_errors=True)
            (self.path / _name(step)).replace(going)
            shutil.rmtree(going, ignore_errors=True)
        return gone


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify. Raises InputError with the reason if it is damaged."""
    from solon.checkpoints.held_groups import read_held

    manifest = verify(path)
    try:
        ledger = LedgerSnapshot.model_validate_json((path / "ledger.json").read_text())
        run = json.loads((path / "run.json").read_text())
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise InputError(f"checkpoint {path}: {_one_line(error)}; resume from another one") from None
    return Checkpoint(
        path=path, step=manifest.step, ledger=ledger, held=read_held(path), run=run, records=read_records(path)
    )


def verify(path: Path) -> Manifest:
    """Compare every file with the manifest. Raises InputError naming the first that differs."""
    manifest = _read_manifest(path)
    _compare(path, manifest.files)
    return manifest


def policy_digests(path: Path) -> dict[str, str]:
    """sha256 of every file of the policy and its canaries, compared with the files. Raises InputError as `verify`
    does, and where the checkpoint has no policy."""
    manifest = _read_manifest(path)
    files = {name: digest for name, digest in manifest.files.items() if name.startswith("policy/")}
    if not files:
        raise InputError(f"checkpoint {path} has no policy, expected one; it belongs to a learner that publishes none")
    _compare(path, {**files, **{name: digest for name, digest in manifest.files.items() if name == CANARIES}})
    return files


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_text())
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"checkpoint {path} has no usable {MANIFEST}: {_one_line(error)}; it is incomplete") from None


def _compare(path: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise InputError(f"checkpoint {path}: {name!r} lies outside of it; it was not written by Solon")
        try:
            found = _sha256(file)
        except OSError as error:
            raise InputError(f"checkpoint {path}: {name} cannot be read ({error.strerror}); it is incomplete") from None
        if found != digest:
            raise InputError(f"checkpoint {path}: {name} is damaged, its sha256 is not the manifest's")


def folder_bytes(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _home(path: Path) -> str:
    """The final name of a folder, whatever its present suffix."""
    return path.name.lstrip(".").partition(".")[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's bytes or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
