"""Commands before a run: how long its roles take, and what to rent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from solon.cli.options import JsonOption, SetOption, print_result

planning_app = typer.Typer(rich_markup_mode=None)

RunFileArgument = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]


@planning_app.command()
def measure(
    path: RunFileArgument,
    out: Annotated[Path, typer.Option(help="Where the rates are written.")] = Path("rates.json"),
    seconds: Annotated[float, typer.Option(min=1, help="For the work of each role; its start comes on top.")] = 15.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time each role of a run here, alone: rollout engine, judge, learner. Takes about two minutes; no Ray."""
    from solon.cli.measure import run_measure

    print_result(run_measure(path, out=out, seconds=seconds, overrides=overrides or [], as_json=as_json), as_json)
