"""`solon`: the commands, and how errors end. Exit 0 success, 1 the run failed, 2 the user's input is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import solon
from solon.cli.terminal import visible
from solon.errors import InputError, RunFailedError
from solon.json_text import json_text

MAX_SEED = 2**31 - 1
"""The run file's bound; said here because importing it takes long."""
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="solon",
    help="Asynchronous reinforcement learning from AI feedback, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing what draws boxes takes three times as long as the rest
)

RunFileArgument = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the run file, as in learn.epochs=1."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Asynchronous reinforcement learning from AI feedback, on Ray."""
    if version:
        typer.echo(solon.__version__)
        raise typer.Exit


@app.command()
def demo(
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the run file's by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED)] = None,
    as_json: JsonOption = False,
) -> None:
    """Align tiny models grown on this machine. The whole system in a few minutes, nothing downloaded."""
    from solon.cli.train import run_demo

    _print(run_demo(steps=steps, seed=seed, as_json=as_json), as_json)


@app.command()
def train(
    run_file: RunFileArgument,
    name: Annotated[str | None, typer.Option(help="Name of the run directory under runs/.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED)] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Align a policy on a Ray cluster. Generates, labels and learns at the same time."""
    from solon.cli.train import run_train

    summary = run_train(run_file, name=name, steps=steps, seed=seed, overrides=overrides or [], as_json=as_json)
    _print(summary, as_json)


@app.command()
def check(run_file: RunFileArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a run file and all that it names. Starts nothing."""
    from solon.cli.check import run_check

    _print(run_check(run_file, overrides=overrides or [], as_json=as_json), as_json)


def _print(result: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(result, indent=2))


def main() -> None:
    """Entry point: turns the two kinds of error into one message and an exit code."""
    try:
        app(prog_name="solon")
    except InputError as error:
        _fail(str(error), 2)
    except RunFailedError as error:
        _fail(f"the run failed: {error}", 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _fail("interrupted before training began; nothing was lost", 1)
        raise


def _fail(message: str, code: int) -> None:
    print(f"solon: {visible(message)}", file=sys.stderr)
    sys.exit(code)
