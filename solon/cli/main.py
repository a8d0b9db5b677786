"""`solon`: the commands, and how errors end. Exit 0 success, 1 the run failed, 2 the user's input is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import solon
from solon.errors import InputError, RunFailedError

app = typer.Typer(
    name="solon",
    help="Asynchronous reinforcement learning from AI feedback, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Grow tiny models on this machine and align them: the whole system in a few minutes, nothing downloaded."""
    from solon.cli.train import run_demo

    _print(run_demo(steps=steps, seed=seed, as_json=as_json), as_json)


@app.command()
def train(
    run_file: RunFileArgument,
    name: Annotated[str | None, typer.Option(help="Name of the run directory under runs/.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Align a policy: generate, label and learn at the same time on a Ray cluster."""
    from solon.cli.train import run_train

    summary = run_train(run_file, name=name, steps=steps, seed=seed, overrides=overrides or [], as_json=as_json)
    _print(summary, as_json)


@app.command()
def check(run_file: RunFileArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a run file and everything it names, without starting anything."""
    from solon.cli.check import run_check

    _print(run_check(run_file, overrides=overrides or [], as_json=as_json), as_json)


def _print(result: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))


def main() -> None:
    """Entry point: turns the two kinds of error into one message and an exit code."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except RunFailedError as error:
        _fail(f"the run failed: {error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted before training began; nothing was lost", 1)


def _fail(message: str, code: int) -> None:
    print(f"solon: {message}", file=sys.stderr)
    sys.exit(code)
