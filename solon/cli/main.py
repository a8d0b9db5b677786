"""`solon`: the commands and their exit codes. Exit 0 success, 1 the run failed, 2 the user's input is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import solon
from solon.cli.compress_commands import compress_app
from solon.cli.constitution import constitution_app
from solon.cli.judges import judges_app
from solon.cli.models import models_app
from solon.cli.options import JsonOption, SetOption, print_result
from solon.cli.output import lost_output, settle_streams
from solon.cli.planning_commands import planning_app
from solon.cli.serve import serve_app
from solon.cli.stage_commands import stages_app
from solon.cli.submit_commands import submit_app
from solon.cli.talk_commands import talk_app
from solon.errors import InputError, RunFailedError, one_line
from solon.files.plain_text import visible
from solon.host.ballast import is_no_space
from solon.host.own_code import protect
from solon.host.submitted_job import require_variables
from solon.host.user_folders import cache_folder

if TYPE_CHECKING:
    from cluster.pools.base import Role

MAX_SEED = 2**31 - 1
"""The run file's bound; repeated here because importing it takes long."""
INTERRUPTED = 130
"""Typer's exit code for Ctrl-C."""
BEFORE_TRAINING = "interrupted before training began; nothing was lost"
INTERRUPTIONS = {
    "align": "interrupted; finished stages stay finished, start again to continue",
    "compare": "interrupted; finished stages stay finished, start again to continue",
    "evaluate": "interrupted; answers of finished policies are in answers.jsonl, and scores are not",
    "revise": "interrupted; nothing was written",
    "tasks": "interrupted; the model's server has ended",
    "compress": "interrupted; finished sweeps and candidates stay finished, start again to continue",
    "measure": "interrupted; no rates were written",
    "plan": "interrupted; nothing was written",
    "serve": "interrupted before the service began",
    "chat": "interrupted; the model's servers have ended",
    "submit": "interrupted before the job was submitted; nothing was started",
    "jobs": "interrupted; the job was left alone",
}
"""By command; others than these train."""
ENDED_AT_ONCE = (
    "align", "compare", "evaluate", "revise", "tasks", "compress", "measure", "plan", "submit", "jobs",
)  # fmt: skip
"""Commands that SIGTERM interrupts as Ctrl-C does. Runs, services and talks handle signals themselves."""

ABOUT_RUNS = ("report", "watch", "track", "push", "compress", "measure", "plan", "submit", "jobs")
"""Commands whose failure is not that of a run."""

app = typer.Typer(
    name="solon",
    help="Asynchronous reinforcement learning from AI feedback, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,  # plain help: importing rich's boxes takes three times as long as everything else
)

app.add_typer(stages_app)
app.add_typer(compress_app)
app.add_typer(constitution_app)
app.add_typer(judges_app)
app.add_typer(models_app)
app.add_typer(planning_app)
app.add_typer(serve_app)
app.add_typer(talk_app)
app.add_typer(submit_app)

RunFileArgument = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Asynchronous reinforcement learning from AI feedback, on Ray."""
    if version:
        typer.echo(solon.__version__)
        raise typer.Exit


@app.command()
def demo(
    context: typer.Context,
    steps: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Optimiser steps; the run file's by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED)] = None,
    english: Annotated[
        bool,
        typer.Option(
            "--english",
            help="Align SmolLM2, a real pretrained assistant, in English: about half an hour on two cores, longer the "
            "first time.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Align tiny models grown on this machine. The whole system in a few minutes, without downloads."""
    from solon.cli.train import run_demo

    print_result(run_demo(english=english, steps=steps, seed=seed, as_json=as_json, roles=context.obj), as_json)


@app.command()
def answers(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its name.", show_default=False)],
    number: Annotated[int, typer.Option(min=1, max=10_000, help="Prompts to show.")] = 5,
) -> None:
    """Show held-out answers from before and after training, side by side, with the principles they kept (+) or not."""
    from rich.console import Console

    from solon.cli.answers import answers_table
    from solon.cli.doctor import find_run

    Console(highlight=False).print(answers_table(find_run(run), number))


@app.command()
def init(
    policy: Annotated[str, typer.Option(help="The model to align: a directory, a .gguf file, or a name on the hub.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="For the files.", show_default=False)] = Path(),
    judge: Annotated[str, typer.Option(help="The model that labels; empty: the policy.", show_default=False)] = "",
    audit_judge: Annotated[
        str, typer.Option(help="A second judge, which never rewards and checks the first.", show_default=False)
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Write files to start from. A commented run file, a constitution and prompts; nothing is replaced."""
    from solon.cli.init import run_init

    print_result(run_init(folder, policy=policy, judge=judge, audit_judge=audit_judge, as_json=as_json), as_json)


@app.command()
def train(
    context: typer.Context,
    run_file: RunFileArgument,
    name: Annotated[str | None, typer.Option(help="Name of the run directory under runs/.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=2**31 - 1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED)] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Resume from the last checkpoint of --name, or of the last run of this file; start if there is "
            "none. A submitted job with --name does so by itself.",
            show_default=False,
        ),
    ] = None,
    back_to: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="best|STEP",
            help="Resume from the checkpoint that the audit ([watch]) liked best, or from that of a step; later ones "
            "are set aside. Settings of judge, feedback, watch, learning rate and KL may change then.",
            show_default=False,
        ),
    ] = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Align a policy on a Ray cluster. Generates, labels and learns concurrently."""
    from solon.cli.train import run_train

    summary = run_train(
        run_file,
        name=name,
        steps=steps,
        seed=seed,
        overrides=overrides or [],
        as_json=as_json,
        resume=resume,
        back_to=back_to,
        roles=context.obj,
    )
    print_result(summary, as_json)


@app.command()
def check(
    path: Annotated[
        str,
        typer.Argument(metavar="RUN.toml|CONSTITUTION.yaml", help="A run file or a constitution.", show_default=False),
    ],
    tests: Annotated[bool, typer.Option("--tests", help="Run the constitution's tests against the judge.")] = False,
    judge: Annotated[
        str, typer.Option(metavar="MODEL", help="Run them against this judge: a directory or a hub name.")
    ] = "",
    device_gib: Annotated[
        float | None,
        typer.Option(
            "--device-gib",
            min=1,
            help="Memory of the GPU that the run is for, GiB; by default that of this machine's.",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run file or a constitution. Starts nothing, unless the constitution's tests are to be run."""
    from solon.cli.check import run_check

    result = run_check(
        path,
        overrides=overrides or [],
        as_json=as_json,
        with_tests=tests or bool(judge),
        judge=judge,
        device_gib=device_gib,
    )
    print_result(result, as_json)
    if result.get("tests", {}).get("failed"):
        raise typer.Exit(1)


@app.command()
def doctor(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run directory, or its name under runs/; none: this machine.", show_default=False
        ),
    ] = "",
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Read checkpoints and metrics completely, however large they are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Diagnose a run or this machine. Says what to do next, and reads only the files of the run."""
    from solon.cli.doctor import run_doctor, run_machine_doctor

    result = run_doctor(run, thorough=thorough, as_json=as_json) if run else run_machine_doctor(as_json=as_json)
    print_result(result, as_json)
    if not result["healthy"]:
        raise typer.Exit(1)


def main(*, roles: Mapping[str, Role] | None = None) -> None:
    """Entry point: turns the two kinds of error into one message and an exit code.

    roles: factories of a run's workers, in place of those in `cluster/pools/`.
    """
    settle_streams()
    _keep_compiled_code()
    _end_as_ctrl_c_does()
    try:
        protect()
        require_variables()
        app(prog_name="solon", obj=roles)
    except InputError as error:
        _fail(_with_notes(str(error), error), 2)
    except RunFailedError as error:
        said = str(error) if sys.argv[1:2] and sys.argv[1] in ABOUT_RUNS else f"the run failed: {error}"
        _fail(_with_notes(said, error), 1)
    except Exception as error:
        if not is_no_space(error):
            raise
        _fail(f"the disk is full: {one_line(str(error))}; free some space, and start again", 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _fail(INTERRUPTIONS.get(sys.argv[1] if len(sys.argv) > 1 else "", BEFORE_TRAINING), 1)
        if not end.code and (failure := lost_output()) is not None:
            _fail(f"the output could not be written: {failure.strerror}; what it tells is incomplete", 1)
        raise


def _end_as_ctrl_c_does() -> None:
    """For a command that says what it has kept."""
    if sys.argv[1:2] and sys.argv[1] in ENDED_AT_ONCE and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _keep_compiled_code() -> None:
    """torch keeps compiled code in the temporary folder unless told otherwise."""
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        with suppress(OSError, InputError):  # without a writable home, the temporary folder is used
            cache = cache_folder() / "torchinductor"
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _with_notes(message: str, error: Exception) -> str:
    """The message with the table of a refusal and the next command: the driver knows the command that resumes."""
    return "\n".join([message, *getattr(error, "__notes__", ())])


def _fail(message: str, code: int) -> None:
    print(f"solon: {visible(message)}", file=sys.stderr)
    sys.exit(code)
