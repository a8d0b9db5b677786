"""`solon submit` and `solon jobs`: runs on a cluster elsewhere."""

from __future__ import annotations

import asyncio
import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from cluster.submission.connection import JobServer
    from cluster.submission.request import Request

LABELS = {"ended_with": "end"}
"""Names on a terminal that differ from those of the JSON result."""
MINUTES = len("2026-01-01 00:00")
"""Characters of a time in a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRequest:
    """The arguments of the command line."""

    path: Path
    address: str
    name: str | None
    steps: int | None
    seed: int | None
    overrides: Sequence[str]
    runs: str
    folder: Path
    variables: Sequence[str]
    required: Sequence[str]
    grace_s: int
    wait: bool
    dry_run: bool


def run_submit(asked: SubmitRequest, *, as_json: bool) -> dict[str, Any]:
    """Check here, submit, and follow the log until the job ends. Raises InputError, RunFailedError."""
    from cluster.submission.package import check_package, measure
    from cluster.submission.paths import check_paths
    from cluster.submission.readable import check_readable
    from cluster.submission.request import make_request

    folder = asked.folder.absolute()
    package = measure(folder)
    request, paths = make_request(
        asked.path,
        folder=folder,
        name=asked.name,
        steps=asked.steps,
        seed=asked.seed,
        overrides=asked.overrides,
        runs=asked.runs,
        variables=asked.variables,
        required=asked.required,
        stop_wait_s=asked.grace_s,
    )
    notes = [*check_package(package), *check_paths(paths, package)]
    if request.kind == "train":
        notes += check_readable(
            asked.path.absolute(), paths, overrides=asked.overrides, folder=folder, required=request.required
        )
    return _send(request, folder, asked, notes=notes, as_json=as_json)


def run_resume(job: str, *, address: str, folder: Path, wait: bool, as_json: bool) -> dict[str, Any]:
    """Submit the run of an earlier job again, which continues it. Raises InputError, RunFailedError."""
    from cluster.submission.connection import connect
    from cluster.submission.package import check_package, measure
    from cluster.submission.request import Request
    from cluster.submission.submit import known_job

    folder = folder.absolute()
    request = Request.of_job(job, known_job(connect(address), job).metadata or {})
    if not (folder / request.file).is_file():
        raise InputError(
            f"{folder} holds no {request.file}, expected the folder that {job} was submitted from; start there, or "
            "name it: --working-dir"
        )
    asked = SubmitRequest(
        path=folder / request.file, address=address, name=request.name, steps=None, seed=None, overrides=(), runs="",
        folder=folder, variables=(), required=(), grace_s=request.stop_wait_s, wait=wait, dry_run=False,
    )  # fmt: skip
    return _send(request, folder, asked, notes=check_package(measure(folder)), as_json=as_json)


def _send(
    request: Request, folder: Path, asked: SubmitRequest, *, notes: Sequence[str], as_json: bool
) -> dict[str, Any]:
    from cluster.submission.connection import check_versions, connect, remarks
    from cluster.submission.submit import submit

    say = _notes(as_json)
    server = connect(asked.address)
    versions = server.versions()
    warnings = [*check_versions(versions), *remarks(server), *notes]
    say(f"cluster  {server.url}: Ray {versions.ray}, Python {versions.python or 'not known'}")
    say(f"command  {request.entrypoint}")
    say(f"results  {request.results}, on the cluster")
    for warning in warnings:
        say(f"warning: {warning}")
    result: dict[str, Any] = {
        "run": request.name,
        "command": request.entrypoint,
        "results": request.results,
        "warnings": warnings,
    }
    if asked.dry_run:
        return {**result, "submitted": False}
    try:
        job = submit(server, request, folder)
    except KeyboardInterrupt:
        raise RunFailedError(
            f"interrupted while {request.name} was submitted; look with `solon jobs list` whether its job has started"
        ) from None
    say(f"job      {job.id}, driver {job.driver}")
    result |= {"submitted": True, "id": job.id, "attempt": job.attempt, "status": "PENDING"}
    if not asked.wait:
        say(_handles(job.id))
        return result
    return {**result, "status": _follow(server, job.id, say=say, as_json=as_json)}


def run_logs(job: str, *, address: str, follow: bool) -> None:
    """Print the log of a job so far, or until it ends. Raises InputError, RunFailedError."""
    from cluster.submission.connection import connect
    from cluster.submission.follow import harmless
    from cluster.submission.submit import known_job

    server = connect(address)
    known_job(server, job)
    if follow:
        _follow(server, job, say=_notes(as_json=False), as_json=False)
        return
    for line in server.log(job).splitlines():
        print(harmless(line))


def run_stop(job: str, *, address: str, wait: bool, as_json: bool) -> dict[str, Any]:
    """Ask a job to end, and wait for it. Raises InputError, RunFailedError."""
    from cluster.submission.connection import connect
    from cluster.submission.submit import stop

    say = _notes(as_json)
    info = stop(connect(address), job, wait=wait, say=say)
    if (info.metadata or {}).get("solon_run"):
        say(f"it continues with: solon jobs resume {job}")
    return _row(info)


def run_status(job: str, *, address: str, as_json: bool) -> dict[str, Any]:
    """One job. Raises InputError, RunFailedError."""
    from cluster.submission.connection import connect
    from cluster.submission.follow import Ended
    from cluster.submission.submit import known_job

    info = known_job(connect(address), job)
    row = _row(info)
    if info.status.is_terminal():
        row["ended_with"] = Ended.of(job, info).said.removeprefix(f"{job} ").removeprefix("was ")
    row |= _progress(Path(row["results"])) if row["results"] else {}
    if not as_json:
        for key, value in row.items():  # on one line each, to be copied
            if value not in (None, ""):
                print(f"{LABELS.get(key, key).replace('_', ' '):<11}{visible(str(value))}")
    return row


def _progress(results: Path) -> dict[str, Any]:
    """How a run stands, where its directory can be read from here."""
    from solon.doctor.diagnosis import diagnose
    from solon.doctor.facts import look

    if not (results / "config.json").is_file():
        return {}
    facts = look(results)
    return {"state": diagnose(facts).status, "step": f"{facts.steps_done} of {facts.config.get('steps', '?')}"}


def run_list(*, address: str, every: bool, as_json: bool) -> dict[str, Any]:
    """The jobs of runs, or all of the cluster. Raises InputError, RunFailedError."""
    from cluster.submission.connection import connect

    found = [_row(info) for info in connect(address).jobs()]
    rows = [row for row in found if every or row["run"]]
    if not as_json:
        table = Table(box=SIMPLE_HEAD)
        columns = ("id", "status", "run", "began", "ended")
        for name in columns:
            table.add_column(name, no_wrap=True)
        for row in rows:
            short = row | {name: row[name][:MINUTES] for name in ("began", "ended")}
            table.add_row(*(Text(visible(str(short[name]))) for name in columns))
        console = Console(highlight=False)
        if rows:
            print_table(console, table)
        else:
            console.print("no jobs of Solon's")
        if hidden := len(found) - len(rows):
            console.print(f"not shown: {hidden} jobs that `solon submit` did not submit; --all shows them")
    return {"jobs": rows}


def _follow(server: JobServer, job: str, *, say: Any, as_json: bool) -> str:
    """Show the log until the job ends; returns its status. Ctrl-C leaves the job alone."""
    from cluster.submission.follow import Follower

    stream = sys.stderr if as_json else sys.stdout

    def write(line: str) -> None:
        print(line, file=stream, flush=True)

    try:
        ended = asyncio.run(Follower(server, job, write=write, say=say).run())
    except KeyboardInterrupt:
        say(f"\n{job} continues without this terminal")
        say(_handles(job))
        return "RUNNING"
    except RunFailedError as error:
        error.add_note(_handles(job))
        raise
    if not ended.code:
        say(ended.said + ("" if ended.status == "SUCCEEDED" else f"; it continues with: solon jobs resume {job}"))
        return ended.status
    failure = (InputError if ended.code == 2 else RunFailedError)(
        f"{ended.said}; its log says why: solon jobs logs {job}"
    )
    failure.add_note(
        "what to do: correct the file, and submit it again"
        if ended.code == 2
        else f"it continues with: solon jobs resume {job}"
    )
    raise failure


def _handles(job: str) -> str:
    return f"follow   solon jobs logs {job} -f\nstop     solon jobs stop {job}\nresume   solon jobs resume {job}"


def _notes(as_json: bool) -> Any:
    """Prints lines of the command itself, which are not part of a result."""
    stream = sys.stderr if as_json else sys.stdout
    return lambda text: print(visible(text), file=stream, flush=True)


def _row(info: Any) -> dict[str, Any]:
    """What people and scripts get to know of a job."""
    metadata = info.metadata or {}
    runs, run = metadata.get("solon_runs", ""), metadata.get("solon_run", "")
    return {
        "id": info.submission_id,
        "status": str(info.status.value),
        "run": run,
        "results": f"{runs}/{run}" if run else "",
        "began": _time(info.start_time),
        "ended": _time(info.end_time),
        "command": info.entrypoint,
        "exit_code": info.driver_exit_code,
    }


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "seconds")
