"""`solon doctor`: the state of a run, read from its files, and what to do next."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.doctor.diagnosis import Diagnosis, diagnose
from solon.doctor.facts import look

LEVELS = {"ok": "green", "note": "yellow", "problem": "red"}
COLOURS = {"stalled": "red", "failed": "red", "dead": "red", "stopped": "yellow", "starting": "yellow"}


def run_doctor(run: str, *, thorough: bool, as_json: bool) -> dict[str, Any]:
    """Examines a run, prints the report unless JSON is wanted, and returns it. Raises InputError."""
    path = find_run(run)
    diagnosis = diagnose(look(path, thorough=thorough))
    if not as_json:
        show(diagnosis, path, Console(highlight=False))
    return {"run": str(path), **diagnosis.as_json()}


def run_machine_doctor(*, as_json: bool) -> dict[str, Any]:
    """Examines this machine, prints what was found unless JSON is wanted, and returns it."""
    from cluster.placement.machine import machine_findings

    found = machine_findings(Path(os.environ.get("SOLON_RUNS", "runs")))
    if not as_json:
        console = Console(highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for one in found:
            text = f"{one.found}: {one.remedy}" if one.remedy else one.found
            table.add_row(Text(one.level, style=LEVELS[one.level]), one.what, Text(visible(text)))
        print_table(console, table)
        console.print(Text("NEXT", style="bold"))
        problems = [one for one in found if one.level == "problem"]
        console.print(Text("  repair what is a problem" if problems else "  solon demo, or solon init --policy MODEL"))
    return {"healthy": all(one.level != "problem" for one in found), "findings": [asdict(one) for one in found]}


def find_run(run: str) -> Path:
    """A directory, or the name of one under runs/."""
    path = Path(run)
    if os.path.isdir(path) or len(path.parts) != 1:  # noqa: PTH112  # what cannot be a path raises nothing
        return path
    under = Path(os.environ.get("SOLON_RUNS", "runs")) / run
    return under if os.path.isdir(under) else path  # noqa: PTH112


def show(diagnosis: Diagnosis, path: Path, console: Console) -> None:
    """The headline, the lines under each heading, and the remedies."""
    colour = COLOURS.get(diagnosis.status, "green") if diagnosis.is_well or diagnosis.status in COLOURS else "red"
    console.print(
        Text.assemble((visible(str(path)), "bold"), ": ", (visible(diagnosis.headline), colour)), soft_wrap=True
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading, lines in diagnosis.findings.items():
        style = "red" if heading == "numbers" else "dim"
        for index, line in enumerate(lines):
            table.add_row(Text("" if index else f"  {heading}", style=style), Text(visible(line)))
    print_table(console, table)
    console.print(Text("NEXT", style="bold"))
    for line in diagnosis.do:
        console.print(Text(f"  {visible(line)}"), soft_wrap=True)  # on one line, to be copied
