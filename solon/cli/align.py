"""`solon align`: training in several stages, each made once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.cli.names import resolver
from solon.cli.train import runs_folder
from solon.errors import InputError, RunFailedError, nearest
from solon.host.user_folders import unusable

if TYPE_CHECKING:
    from cluster.align.file import AlignFile
    from cluster.align.plan import Step


def run_align(
    path: Path, *, name: str | None, again_from: str, dry_run: bool, overrides: Sequence[str], as_json: bool
) -> dict[str, Any]:
    """Make what is missing of an alignment file, or with `dry_run` say what that is. Raises InputError,
    RunFailedError."""
    from cluster.align.checks import check_alignment
    from cluster.align.execute import align, plan
    from cluster.align.file import AlignFile
    from solon.artifacts.store import Store

    file = AlignFile.load(path, overrides=overrides)
    names = [stage.name for stage in file.stages]
    if again_from and again_from not in names:
        raise InputError(f"--from {again_from}: expected one of {', '.join(names)}{nearest(again_from, names)}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    paths = resolver(given_names(file), progress=not as_json)
    check_alignment(file, paths)
    root = runs_folder()
    store = Store(root / "artifacts")
    view = Lines(quiet=as_json, total=len(names))
    if dry_run:
        steps = plan(file, store=store, paths=paths, again_from=again_from)
        for step in steps:
            view.planned(step)
        return {"stages": [_planned(step) for step in steps]}
    folder = root / (name or path.stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(root, error, "SOLON_RUNS") from None
    try:
        done = align(file, folder=folder, store=store, paths=paths, again_from=again_from, view=view)
    except OSError as error:
        raise RunFailedError(
            f"{error}; free space or change permissions, and start again: finished stages stay finished"
        ) from error
    return {
        "folder": str(folder),
        "stages": [
            {
                "name": one,
                "digest": artifact.digest,
                "folder": str(artifact.folder),
                "made_in_s": done.seconds.get(one),
                "report": dict(artifact.record),
            }
            for one, artifact in done.made.items()
        ],
    }


def given_names(file: AlignFile) -> list[str]:
    """Names and paths of the user's models and files."""
    return sorted({one.path for n in range(len(file.stages)) for one in file.sources(n).values() if one.path})


def _planned(step: Step) -> dict[str, Any]:
    return {"name": step.stage.name, "type": step.stage.kind, "runs": step.found is None, "why": step.reason}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """One line for each event of an alignment."""

    quiet: bool
    total: int

    def planned(self, step: Step) -> None:
        self._say(step, "exists" if step.found else f"would run: {step.reason}")

    def found(self, step: Step) -> None:
        self._say(step, "exists, made earlier")

    def begins(self, step: Step) -> None:
        self._say(step, f"runs: {step.reason}")

    def ends(self, step: Step, seconds: float, report: Mapping[str, Any]) -> None:
        figures = ", ".join(f"{key} {_figure(value)}" for key, value in report.items() if value is not None)
        self._say(step, f"made in {seconds:.0f} s: {figures}")

    def _say(self, step: Step, text: str) -> None:
        if not self.quiet:
            print(f"[{step.number}/{self.total}] {step.stage.name}: {text}", flush=True)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_figure(one)}" for key, one in value.items()) + ")"
    return str(value)
