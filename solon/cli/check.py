"""`solon check`: reads everything a run would read, starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from solon.cli.nursery_names import uses_nursery, with_nursery
from solon.cli.terminal import visible


def run_check(path: Path, *, overrides: list[str], as_json: bool) -> dict[str, Any]:
    """Raises InputError for the first thing that is wrong. Returns what was found."""
    from cluster.preflight import check_inputs
    from cluster.run_file import RunFile

    run = RunFile.load(path, overrides=overrides)
    if uses_nursery(run):
        run = with_nursery(run, progress=not as_json)
    inputs = check_inputs(run)
    result = {
        "run_file": str(path),
        "config_hash": run.hash,
        "constitution": inputs.constitution.id,
        "constitution_hash": inputs.constitution.hash,
        "principles": [principle.id for principle in inputs.constitution.principles],
        "prompts": len(inputs.prompts),
        "heldout_prompts": len(inputs.heldout),
        "needs": {"cpus": run.cpus, "gpus": run.gpus},
        "warnings": list(inputs.warnings),
    }
    if not as_json:
        console = Console(highlight=False)
        for warning in inputs.warnings:
            console.print(Text(visible(f"warning: {warning}"), style="yellow"), soft_wrap=True)
        found = (
            f"{path}: good. {len(inputs.prompts)} prompts, {len(inputs.constitution.principles)} principles of "
            f"{inputs.constitution.id!r}; needs {run.cpus:g} CPU(s) and {run.gpus:g} GPU(s) of a cluster."
        )
        console.print(Text(visible(found)), soft_wrap=True)
    return result
