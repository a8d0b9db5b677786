"""Commands for runs on a cluster elsewhere: `solon submit`, `solon jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from solon.cli.options import JsonOption, SetOption, print_result

submit_app = typer.Typer(rich_markup_mode=None)
jobs_app = typer.Typer(
    help="Jobs on a cluster: list, status, logs, stop, resume.", no_args_is_help=True, rich_markup_mode=None
)
submit_app.add_typer(jobs_app, name="jobs")

Address = Annotated[
    str,
    typer.Option(metavar="URL", help="Dashboard of the cluster; else RAY_API_SERVER_ADDRESS.", show_default=False),
]
Job = Annotated[str, typer.Argument(metavar="ID", help="Submission id, as in solon-night-1.", show_default=False)]
Folder = Annotated[
    Path, typer.Option("--working-dir", metavar="DIR", help="Folder to upload: the run file and what it names.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]


@submit_app.command()
def submit(
    path: Annotated[
        Path, typer.Argument(metavar="RUN.toml|ALIGN.toml", help="A run or alignment file.", show_default=False)
    ],
    address: Address = "",
    name: Annotated[
        str | None, typer.Option(help="Name of the run. The same name again continues it.", show_default=False)
    ] = None,
    runs: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            envvar="SOLON_RUNS",
            help="Folder of runs on a disk that all nodes share.",
            show_default=False,
        ),
    ] = "",
    steps: Annotated[int | None, typer.Option(min=1, max=2**31 - 1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1)] = None,
    overrides: SetOption = None,
    folder: Folder = Path(),
    variables: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Environment variable of the job; no secrets."),
    ] = None,
    required: Annotated[
        list[str] | None,
        typer.Option("--require-env", metavar="NAME", help="Variable that the cluster's machines must have."),
    ] = None,
    grace: Annotated[
        int, typer.Option(min=3, help="Seconds that a stopped job has for its step and a checkpoint.")
    ] = 120,
    no_wait: NoWait = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check here and on the cluster; submit nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run on a cluster elsewhere. Checks, uploads the folder and follows the log; Ctrl-C leaves the job alone."""
    from solon.cli.submit import SubmitRequest, run_submit

    asked = SubmitRequest(
        path=path,
        address=address,
        name=name,
        steps=steps,
        seed=seed,
        overrides=overrides or [],
        runs=runs,
        folder=folder,
        variables=variables or [],
        required=required or [],
        grace_s=grace,
        wait=not no_wait,
        dry_run=dry_run,
    )
    print_result(run_submit(asked, as_json=as_json), as_json)


@jobs_app.command("list")
def list_jobs(
    address: Address = "",
    every: Annotated[bool, typer.Option("--all", help="Also jobs that `solon submit` did not submit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the jobs that `solon submit` made on a cluster, the oldest first."""
    from solon.cli.submit import run_list

    print_result(run_list(address=address, every=every, as_json=as_json), as_json)


@jobs_app.command()
def status(job: Job, address: Address = "", as_json: JsonOption = False) -> None:
    """Show the state of a job, how it ended, and where its results are."""
    from solon.cli.submit import run_status

    print_result(run_status(job, address=address, as_json=as_json), as_json)


@jobs_app.command()
def logs(
    job: Job,
    address: Address = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; its exit code is this one.")
    ] = False,
) -> None:
    """Print the log of a job."""
    from solon.cli.submit import run_logs

    run_logs(job, address=address, follow=follow)


@jobs_app.command()
def stop(job: Job, address: Address = "", no_wait: NoWait = False, as_json: JsonOption = False) -> None:
    """Stop a job in order. It finishes its step and writes a checkpoint, within the grace of its submission."""
    from solon.cli.submit import run_stop

    print_result(run_stop(job, address=address, wait=not no_wait, as_json=as_json), as_json)


@jobs_app.command()
def resume(
    job: Job, address: Address = "", folder: Folder = Path(), no_wait: NoWait = False, as_json: JsonOption = False
) -> None:
    """Submit the run of an ended job again; it continues from its last checkpoint."""
    from solon.cli.submit import run_resume

    print_result(run_resume(job, address=address, folder=folder, wait=not no_wait, as_json=as_json), as_json)
