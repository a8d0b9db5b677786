"""Makes the results of an alignment, stage by stage; a result that exists is not made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.align.base import PRODUCTS, Job
from cluster.align.file import AlignFile
from cluster.align.plan import Planner, Step
from solon.artifacts.digests import digest_of
from solon.artifacts.store import Artifact, Store
from solon.errors import InputError, RunFailedError
from solon.host.allocator import KEEP_FREED_MEMORY
from solon.host.directory_lock import locked
from solon.host.own_code import child_environment, module_command
from solon.host.processes import failure_of
from solon.host.stopwatch import running


class AlignView(Protocol):
    """Shows the progress of an alignment."""

    def found(self, step: Step) -> None:
        """The result of a stage exists."""

    def begins(self, step: Step) -> None:
        """A stage is made."""

    def ends(self, step: Step, seconds: float, report: Mapping[str, Any]) -> None:
        """A stage was made."""


@dataclass(slots=True)
class Aligned:
    """The results of an alignment."""

    made: dict[str, Artifact] = field(default_factory=dict)
    """By name of the stage."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the stages that were made in this start."""


def align(
    file: AlignFile, *, folder: Path, store: Store, paths: Callable[[str], str], again_from: str, view: AlignView
) -> Aligned:
    """Make all stages, alone in the folder of this alignment. again_from: make this stage and later ones again; empty:
    none.

    Raises InputError, and RunFailedError when a stage fails; finished stages stay finished.
    """
    planner, done = Planner(file, store, paths), Aligned()
    names = [stage.name for stage in file.stages]
    first_again = names.index(again_from) if again_from else len(names)
    with locked(folder):
        for number, name in enumerate(names):
            again = number >= first_again
            step = planner.step(number, done.made, again=again)
            if step.found is None:
                view.begins(step)
                started = time.monotonic()
                step = _make(step, file, planner.inputs(number, done.made), folder, store, again=again)
                done.seconds[name] = time.monotonic() - started
                assert step.found is not None
                view.ends(step, done.seconds[name], step.found.record)
            else:
                view.found(step)
            done.made[name] = step.found
            _link(folder, step)
    return done


def plan(file: AlignFile, *, store: Store, paths: Callable[[str], str], again_from: str) -> list[Step]:
    """The same without making anything: what exists, and why the rest would run."""
    planner, made = Planner(file, store, paths), dict[str, Artifact]()
    names = [stage.name for stage in file.stages]
    first_again = names.index(again_from) if again_from else len(names)
    steps = []
    for number, name in enumerate(names):
        step = planner.step(number, made, again=number >= first_again)
        if step.found is not None:
            made[name] = step.found
        steps.append(step)
    return steps


def _make(step: Step, file: AlignFile, inputs: Mapping[str, str], folder: Path, store: Store, *, again: bool) -> Step:
    """Make one stage, unless another process has made it meanwhile."""
    assert step.key is not None
    with store.alone_with(step.key):
        if again:
            _forget(step, folder)
        if again or (found := store.find(step.key)) is None:
            _work(step, file, inputs, folder, store)
            found = store.find(step.key)
    return Step(number=step.number, stage=step.stage, key=step.key, found=found, reason=step.reason)


def _work(step: Step, file: AlignFile, inputs: Mapping[str, str], folder: Path, store: Store) -> None:
    assert step.key is not None
    place = folder / "stages" / f"{step.number:02d}-{step.stage.name}"
    # Of another key: settings or inputs changed since it was interrupted.
    kept = place.with_name(f"{place.name}.kept-{digest_of(step.key)[:8]}")
    for stale in place.parent.glob(f"{place.name}.kept-*"):
        if stale.name == f"{kept.name}.seconds":
            continue
        if stale.is_dir() and stale != kept:
            shutil.rmtree(stale, ignore_errors=True)
        elif stale != kept:
            stale.unlink(missing_ok=True)
    with store.making(step.key) as making, _scratch(place) as scratch:
        children = _Children(scratch, place.with_name(f"{place.name}.log"))
        kept.mkdir(parents=True, exist_ok=True)
        job = Job(
            out=making.folder,
            scratch=scratch,
            kept=kept,
            inputs=inputs,
            file=file,
            run=children.run,
            work=children.work,
        )
        with running(kept.with_name(f"{kept.name}.seconds")) as watch:
            step.stage.make(job)
        if missing := [name for name in step.stage.makes if not (making.folder / PRODUCTS[name]).exists()]:
            raise RunFailedError(f"the stage {step.stage.name} made no {missing[0]}")
        making.record.update(job.report, seconds=round(watch.seconds, 3))
    records = place.with_name(f"{place.name}.records")
    shutil.rmtree(records, ignore_errors=True)
    if any(kept.iterdir()):
        kept.rename(records)
    else:
        kept.rmdir()


def _forget(step: Step, folder: Path) -> None:
    """What an interrupted start of a stage left: made again, it begins afresh."""
    for kept in (folder / "stages").glob(f"{step.number:02d}-{step.stage.name}.kept-*"):
        if kept.is_dir():
            shutil.rmtree(kept, ignore_errors=True)


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    scratch = place.with_name(f"{place.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _link(folder: Path, step: Step) -> None:
    """A link from the alignment's folder to the result."""
    assert step.found is not None
    link = folder / "stages" / f"{step.number:02d}-{step.stage.name}"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(step.found.folder.absolute())


def _short(command: Sequence[str]) -> str:
    """The module and its first argument."""
    start = command.index("-m") + 1 if "-m" in command else 0
    return " ".join(command[start : start + 2])


class _Children:
    """Processes of a stage; they end when this one does."""

    def __init__(self, scratch: Path, log: Path) -> None:
        self._scratch, self._log, self._count = scratch, log, 0

    def run(self, command: Sequence[str]) -> None:
        """Run to the end. Raises InputError for exit code 2, RunFailedError for others."""
        with self._log.open("a", encoding="utf-8") as log:
            child = subprocess.Popen(
                [*module_command("solon.host.child"), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(GLIBC_TUNABLES=os.environ.get("GLIBC_TUNABLES", KEEP_FREED_MEMORY)),
            )
            try:
                code = child.wait()
            finally:
                if child.stdin:
                    child.stdin.close()
                child.wait()
        if code:
            kind = InputError if code == 2 else RunFailedError
            raise kind(f"{_short(command)} {failure_of(code, self._log)}")

    def work(self, target: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a function in a process of its own. Raises InputError and RunFailedError as it did."""
        self._count += 1
        given, out = (self._scratch / f"{kind}-{self._count}.json" for kind in ("arguments", "result"))
        given.write_text(json.dumps(arguments), encoding="utf-8")
        try:
            self.run(module_command("cluster.align.worker", target, str(given), str(out)))
        except (InputError, RunFailedError) as error:
            said = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
            raise (type(error)(said["failure"]) if "failure" in said else error) from None
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
