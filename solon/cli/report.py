"""`solon report`: one HTML file about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from solon.cli.doctor import find_run
from solon.errors import InputError


def run_report(run: str, *, out: Path | None, as_json: bool) -> dict[str, Any]:
    """Writes the report, and prints where it is unless JSON is wanted. Raises InputError and RunFailedError."""
    from cluster.report import report_of

    path = find_run(run)
    if not path.is_dir():
        raise InputError(f"there is no run directory {path}, expected one, or the name of one under runs/")
    if not any((path / name).exists() for name in ("config.json", "summary.json", "metrics.jsonl")):
        raise InputError(
            f"{path} is not a run directory, expected config.json or metrics.jsonl in it; look with `ls {path}`"
        )
    page = report_of(path, out)
    if not as_json:
        typer.echo(f"{page}: open it in a browser")
    return {"run": str(path), "report": str(page), "bytes": page.stat().st_size}
