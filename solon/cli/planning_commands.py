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


@planning_app.command()
def plan(
    path: RunFileArgument,
    gpus: Annotated[int | None, typer.Option(min=1, max=4096, help="Devices to divide.", show_default=False)] = None,
    gpu_type: Annotated[str, typer.Option(metavar="TYPE", help="a100, h100, h200, b200, l4, l40s or mi300x.")] = "",
    gpus_per_node: Annotated[
        int, typer.Option(min=1, max=64, help="An engine and a learner stay on one node; ranks are powers of two.")
    ] = 8,
    rates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rates of solon measure; without, those published.", show_default=False),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="USD for an hour of one device, or of this machine.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run file with this plan.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write replace a file.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan a run before renting: memory, split over the devices, throughput, staleness, cost. Starts nothing."""
    from solon.cli.plan import PlanRequest, run_plan

    request = PlanRequest(
        path=path,
        gpus=gpus,
        gpu_type=gpu_type,
        gpus_per_node=gpus_per_node,
        rates=rates,
        price=price,
        write=write,
        force=force,
        overrides=overrides or [],
        as_json=as_json,
    )
    print_result(run_plan(request), as_json)
