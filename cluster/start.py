"""Decides where a run begins: in a new directory, or at the last checkpoint of an old one. It writes nothing but a
checkpoint fetched from `checkpoint_url`, under the lock of the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.config.input_digests import Digests, refuse_other_inputs
from cluster.config.run_file import RunFile
from cluster.rewind import (
    best_of,
    chosen,
    inputs_to_share,
    judges_changed,
    may_change,
    other_judge,
    refuse_spoilt,
    windows_of,
)
from learners.config import OBJECTIVES
from solon.checkpoints.folder import Checkpoint, CheckpointFolder
from solon.checkpoints.remote import download
from solon.errors import InputError, short
from solon.files.marks import is_among
from solon.files.marks import may_change as changeable
from solon.files.overrides import flat_items
from solon.host.directory_lock import locked
from solon.host.submitted_job import in_any_copy
from solon.runs.directory import RunDirectory
from solon.runs.integrity import UNRECORDED, Integrity, examine, said_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins."""

    directory: Path | None
    """The directory of the run to resume; None: a new run."""
    checkpoint: Checkpoint | None = None
    """None: from the first step."""
    damaged: tuple[str, ...] = ()
    """The problems of younger checkpoints."""
    goes_back: bool = False
    """Checkpoints younger than this one are set aside: `--from`."""
    changed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Settings that a run changes when it goes back: [before, now] by key."""
    records: Integrity = UNRECORDED
    """How the files of the run compare with the checkpoint's record of them."""
    finished: Mapping[str, Any] | None = None
    """The summary of a run that has nothing left to do."""

    @property
    def judges_again(self) -> bool:
        """Another judge rewards from here on: the labels in the checkpoint come from a former judge."""
        return other_judge(self.changed)

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def remarks(self) -> list[str]:
        """Warnings about files that differ from what the run wrote, a sentence each."""
        return said_of(self.records, self.checkpoint.path.name) if self.checkpoint else []

    def open(self, root: Path, name: str | None, *, default: str) -> RunDirectory:
        """The directory, created or prepared."""
        if self.directory is None:
            return RunDirectory.create(root, name, default=default)
        return RunDirectory.reopen(self.directory)


def find_start(
    run: RunFile,
    constitution_hash: str,
    *,
    digests: Digests | None = None,
    root: Path,
    name: str | None,
    default: str,
    resume: bool,
    back_to: str = "",
) -> Start:
    """digests: of the run's inputs (`cluster.config.input_digests`). back_to: `best` or a step, the checkpoint at which
    a resumed run begins; empty: the last one. Raises InputError when the old run has other inputs or settings: a
    resume would mix two runs."""
    if not resume:
        if back_to:
            raise InputError(f"--from {back_to} goes with --resume, got a run that begins; add --resume and --name")
        return Start(directory=None)
    directory = root / name if name is not None else _latest(root, default)
    if directory is None or not (directory / "config.json").exists():
        if back_to:
            raise InputError(
                f"--from {back_to}: {directory or root} has no run to go back in, expected the --name of one; look "
                f"with `ls {root}`"
            )
        if directory is not None:
            _refuse_half_a_run(directory)
        # Nothing has begun yet: a retried job starts with the same command like the first time.
        return Start(directory=directory if directory is not None and directory.exists() else None)
    with locked(directory):  # nothing is read or removed from a run that is still running
        start = _start_back_in if back_to else _start_in
        return start(directory, run, constitution_hash, digests or {}, back_to)


def _refuse_half_a_run(directory: Path) -> None:
    """Raises InputError for a directory whose run has lost its config.json: starting there would mix two runs."""
    steps = CheckpointFolder(directory / "checkpoints").steps()
    if steps or (directory / "metrics.jsonl").exists():
        last = f", the last checkpoint is that of step {steps[-1]}" if steps else ""
        raise InputError(
            f"--resume: {directory} has records of a run but no config.json{last}; put that file back, or train from "
            "the start under another --name"
        )


def _start_back_in(directory: Path, run: RunFile, constitution_hash: str, digests: Digests, back_to: str) -> Start:
    """The start of a run that goes back to an earlier checkpoint."""
    changed = _refuse_another_run(run, constitution_hash, directory, digests, goes_back=True)
    checkpoint = chosen(CheckpointFolder(directory / "checkpoints"), back_to)
    then = checkpoint.run.get("inputs") or {}
    refuse_other_inputs(inputs_to_share(digests), then, place=checkpoint.path, run=run)
    changed |= judges_changed(digests, then)
    _refuse_too_far(checkpoint, run, directory)
    records = _compared(directory, checkpoint, run)
    return Start(directory=directory, checkpoint=checkpoint, goes_back=True, changed=changed, records=records)


def _start_in(directory: Path, run: RunFile, constitution_hash: str, digests: Digests, _: str = "") -> Start:
    """The start of a run that resumes."""
    _refuse_another_run(run, constitution_hash, directory, digests)
    summary = _read(directory / "summary.json") if (directory / "summary.json").exists() else {}
    if summary.get("status") == "completed" and summary.get("steps", 0) >= run.steps:
        return Start(directory=directory, finished=summary)
    folder = CheckpointFolder(directory / "checkpoints")
    damaged: list[str] = []
    checkpoint = folder.last(damaged=damaged)
    whole = -1 if checkpoint is None else checkpoint.step
    if run.checkpoint_url and download(run.checkpoint_url, folder, whole=whole, damaged=damaged):
        checkpoint = folder.last()
    if checkpoint is not None:
        refuse_other_inputs(digests, checkpoint.run.get("inputs") or {}, place=checkpoint.path, run=run)
        refuse_spoilt(checkpoint, directory, best_of(folder, windows_of(checkpoint), checkpoint.run.get("stopped_by")))
        _refuse_too_far(checkpoint, run, directory)
    records = _compared(directory, checkpoint, run)
    return Start(directory=directory, checkpoint=checkpoint, damaged=tuple(damaged), records=records)


def _refuse_too_far(checkpoint: Checkpoint, run: RunFile, directory: Path) -> None:
    if checkpoint.step > run.steps:
        raise InputError(
            f"--resume: {directory} has trained {checkpoint.step} steps already, expected more than that in steps = "
            f"{run.steps}; raise it with --steps"
        )


def _compared(directory: Path, checkpoint: Checkpoint | None, run: RunFile) -> Integrity:
    """How the append-only files compare with the checkpoint's record of them. Raises InputError when the difference
    forbids a resume."""
    records = UNRECORDED if checkpoint is None else examine(directory, checkpoint.records)
    if records.damages and run.recovery.damaged_records == "refuse":
        raise InputError(
            f"--resume: {'; '.join(damage.text for damage in records.damages)}; restore the files of {directory}, or "
            'set recovery.damaged_records = "continue"'
        )
    return records


def _latest(root: Path, default: str) -> Path | None:
    """The youngest run directory of this run file."""
    found = [path for path in root.glob(f"{default}-*") if (path / "config.json").exists()]
    return max(found, key=lambda path: (path / "config.json").stat().st_mtime, default=None)


def _refuse_another_run(
    run: RunFile, constitution_hash: str, directory: Path, digests: Digests, *, goes_back: bool = False
) -> dict[str, Sequence[Any]]:
    """The settings that a run changes when it goes back, [before, now] by key."""
    old = _read(directory / "config.json")
    if old.get("constitution_hash") != constitution_hash:
        raise InputError(
            f"--resume: the constitution is not the one of {directory}, so its labels would not go together; restore "
            "it, or start a run of another --name"
        )
    ours, theirs = dict(flat_items(run.model_dump(mode="json"))), dict(flat_items(_completed(old, run)))
    if _objective(ours) == _objective(theirs):  # one of the two may leave out the name
        theirs["learn.objective"] = ours["learn.objective"]
    absent, allowed = object(), changeable(type(run))
    places = _moved(digests, old.get("inputs") or {})
    changed = [
        key
        for key in (*ours, *(theirs.keys() - ours.keys()))
        if in_any_copy(ours.get(key, absent)) != in_any_copy(theirs.get(key, absent))
        and key not in places
        and not is_among(key, allowed)
        # An optional section that is present on one side: its own keys say what it holds.
        and not any(other.startswith(f"{key}.") for other in (*ours, *theirs))
    ]
    accepted = [key for key in changed if goes_back and may_change(key)]
    if refused := [key for key in changed if key not in accepted]:
        shown = "; ".join(f"{key} was {_said(theirs, key)}, is {_said(ours, key)}" for key in refused[:4])
        back = "" if goes_back or not all(map(may_change, refused)) else ", go back with --from best or --from STEP"
        raise InputError(
            f"--resume: {directory} was another run: {shown}; set them back{back}, or start a run of another --name"
        )
    shared = inputs_to_share(digests) if goes_back else digests
    refuse_other_inputs(shared, old.get("inputs") or {}, place=directory, run=run)
    return {key: [theirs.get(key), ours.get(key)] for key in accepted}


def _moved(now: Digests, then: Mapping[str, object]) -> set[str]:
    """Inputs with the content that they had: they may lie elsewhere."""
    return {key for key, digest in now.items() if then.get(key) == digest}


def _objective(settings: Mapping[str, Any]) -> Any:
    """The objective in use, from flat settings."""
    return settings.get("learn.objective") or OBJECTIVES.get(settings.get("learn.advantages", ""))


def _completed(old: Mapping[str, Any], run: RunFile) -> dict[str, Any]:
    """The configuration of an old run, with today's defaults for keys that it did not know."""
    known = {key: value for key, value in old.items() if key in type(run).model_fields}
    try:
        return type(run).parse(known, source="config.json").model_dump(mode="json")
    except InputError:  # written by a version with other keys or bounds: missing keys are assumed equal
        return _merged(run.model_dump(mode="json"), known)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first mapping merged under the second, section by section."""
    found = dict(first)
    for key, value in second.items():
        if key in found and isinstance(found[key], Mapping) and isinstance(value, Mapping):
            value = _merged(found[key], value)
        if key in found:
            found[key] = value
    return found


def _said(found: Mapping[str, Any], key: str) -> str:
    return short(found[key]) if key in found else "not set"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--resume: {path} cannot be read: {error}; start a run of another --name") from None
    return value if isinstance(value, dict) else {}
