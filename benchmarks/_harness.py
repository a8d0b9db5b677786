"""Shared by all benchmarks: rows with both sides of a comparison, a table, and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reference` is the other side, measured in the same run, or None; `goal` reads like `>= 0.95`."""

    metric: str
    ours: float
    reference: float | None = None
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """None: there is no goal to meet."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.ours >= float(bound) if sign == ">=" else self.ours <= float(bound)


def arguments(description: str) -> argparse.ArgumentParser:
    """`--json PATH` and `--quick`, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, as a smoke test")
    return parser


def report(name: str, rows: list[Row], path: Path | None) -> None:
    """Print the rows, and write them if requested."""
    table = Table(title=name, title_justify="left")
    for column in ("metric", "ours", "reference", "ratio", "goal", "met"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        met = {True: "yes", False: "NO", None: ""}[row.met]
        table.add_row(row.metric, _number(row.ours), _number(row.reference), _number(row.ratio), row.goal, met)
    Console(width=130).print(table)
    if path is not None:
        record = {
            "name": name,
            "date": time.strftime("%Y-%m-%d"),
            "commit": _commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "rows": [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
