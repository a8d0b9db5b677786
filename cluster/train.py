"""`solon train`: checks everything, opens the run directory and the cluster, and starts the driver."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import solon
from cluster.config.fitting import fit_run, own_cpus
from cluster.config.run_file import RunFile
from cluster.driver import Driver
from cluster.launch import cluster
from cluster.pipeline_file import stages_of
from cluster.placement.placement import check_cluster
from cluster.placement.supply import read_supply
from cluster.pools.base import Role
from cluster.preflight.checks import check_inputs
from cluster.preflight.space import remarks_on_space
from cluster.ray_metrics import is_on
from cluster.ray_session.machines import check_machines
from cluster.ray_session.session import answers_probe
from cluster.ray_session.watch import RayWatch
from cluster.session import RunSession
from cluster.start import Start, find_start
from cluster.view import View
from solon.checkpoints.folder import folder_bytes
from solon.doctor.next_steps import resume_command
from solon.errors import InputError, short
from solon.runs.directory import RunDirectory


def train(
    run: RunFile,
    *,
    name: str | None,
    default_name: str,
    root: Path,
    view: View,
    resume: bool = False,
    back_to: str = "",
    origin: Mapping[str, Any] | None = None,
    roles: Mapping[str, Role] | None = None,
) -> dict[str, Any]:
    """A whole run; returns its summary. `resume`: continue at the last checkpoint of the directory of that name, or of
    the youngest one; begin where there is none. `back_to`: `best` or a step: the checkpoint to continue at, in place
    of the last one. `origin`: how the run was started; `config.json` keeps it, so that the directory says how to
    resume. `roles`: factories of the workers, in place of those in `cluster/pools/`.

    Raises InputError before any engine starts where possible, and later RunFailedError or the error of the stage that
    failed; `summary.json` is then written in every case.
    """
    is_on()  # a bad value of its switch is refused here
    run, fitted = fit_run(run, cpus=own_cpus())
    inputs = check_inputs(run, fetch=True, say=view.note)
    _say(view, notes=(*fitted, *inputs.notes), warnings=inputs.warnings)
    start = find_start(
        run,
        inputs.constitution.hash,
        digests=inputs.digests,
        root=root,
        name=name,
        default=default_name,
        resume=resume,
        back_to=back_to,
    )
    if start.finished is not None:
        view.note(f"{start.directory} is complete, there is nothing left to do; more steps need a larger --steps")
        return dict(start.finished)
    require_place(root)
    if resume and start.directory is None:
        view.note(
            f"there is no run to resume{f' of the name {name}' if name else ''} in {root}: this one begins at step 0"
        )
    _say(view, warnings=(*start.damaged, *start.remarks, *_remarks_on_space(run, root, start)))
    with cluster() as info:
        check_cluster(run, read_supply())
        _say(view, warnings=check_machines(run, root))
        directory = start.open(root, name, default=default_name)
        view.cluster(info, directory.path)
        _say(view, notes=(*info.notes, *_notes_on_resuming(start, directory)))
        config: dict[str, Any] = {
            "hash": run.hash,
            "constitution_hash": inputs.constitution.hash,
            "inputs": dict(inputs.digests),
            "solon": solon.__version__,
        }
        config |= {"started": time.time(), "origin": dict(origin or {})}
        resume_with = resume_command(directory.path, config)
        session = RunSession(run, inputs, directory, view, start=start, resume=resume_with, roles=roles)
        return _drive(session, config | run.model_dump(mode="json"))


def _drive(session: RunSession, config: Mapping[str, Any]) -> dict[str, Any]:
    """The run itself; a refused attempt to resume leaves the old run unchanged."""
    directory = session.directory
    before = _records(directory.path) if session.start.directory is not None else {}
    driver = Driver(session, stages_of(session.run))
    try:
        directory.write_json("config.json", config)
        with RayWatch(driver, probe=answers_probe()) as ray_watch:
            try:
                return asyncio.run(driver.drive())
            except Exception as error:
                ray_watch.leave_if_gone(error)
                raise
    except InputError:
        if not driver.has_begun:
            for name, content in before.items():
                put_back(directory.path / name, content)
        raise
    finally:
        directory.close()  # the lock is held until the last file of the run is written


def _say(view: View, *, notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
    for note in notes:
        view.note(note)
    for warning in warnings:
        view.note(f"warning: {warning}")


def _remarks_on_space(run: RunFile, root: Path, start: Start) -> Sequence[str]:
    old = start.directory / "checkpoints" if start.directory is not None else None
    return remarks_on_space(run, root, there=sum(map(folder_bytes, old.glob("step-*"))) if old is not None else 0)


def _notes_on_resuming(start: Start, directory: RunDirectory) -> Iterator[str]:
    if start.directory is None:
        return
    yield f"resuming {directory.path} after step {start.step}"
    for key, (was, now) in start.changed.items():
        yield f"{key} was {short(was)}, is {short(now)} from here on"
    if start.judges_again:
        yield "the labels that the checkpoint holds are another judge's; its groups are judged again"


def require_place(root: Path) -> None:
    """Raises InputError when no run directory can be created there: before a cluster is started for it.

    No folder is left behind, as the start may still be refused.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".solon-", dir=root):
            pass
        for folder in made:
            with contextlib.suppress(OSError):  # another run has begun in it
                folder.rmdir()
    except OSError as error:
        raise InputError(
            f"no run directory can be made in {root}: {error.strerror or error}; free some space there, make it "
            "writable, or set SOLON_RUNS to another folder"
        ) from None


def _records(folder: Path) -> dict[str, bytes | None]:
    """The record of how a run was started and how it ended; None: there is no such file."""
    paths = [folder / name for name in ("config.json", "summary.json")]
    return {path.name: path.read_bytes() if path.exists() else None for path in paths}


def put_back(path: Path, content: bytes | None) -> None:
    """The former content of a file; None: it did not exist."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_bytes(content)
    scratch.replace(path)
