"""`solon measure`: times each role of a run, alone, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.names import uses_names, with_paths
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.errors import InputError


def run_measure(path: Path, *, out: Path, seconds: float, overrides: list[str], as_json: bool) -> dict[str, Any]:
    """Writes the rates and returns them. Raises InputError before anything is loaded where possible."""
    from cluster.config.fitting import fit_run, own_cpus
    from cluster.pipeline_file import load_run
    from cluster.plan.measuring import measure
    from cluster.preflight.checks import check_inputs

    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it, or name another file")
    run = load_run(path, overrides=overrides)
    if uses_names(run):
        run = with_paths(run, progress=not as_json)
    run, _ = fit_run(run, cpus=own_cpus())
    console = Console(highlight=False, quiet=as_json)

    def say(text: str) -> None:
        console.print(Text(visible(text)), soft_wrap=True)

    inputs = check_inputs(run, say=say)
    rates = measure(run, inputs.prompts, seconds=seconds, say=say)
    out.write_text(rates.model_dump_json(indent=2) + "\n", encoding="utf-8")
    table = Table(box=None, pad_edge=False)
    for title in ("alone", "seconds, fixed", "seconds, each", "of", "cores"):
        table.add_column(title, justify="left" if title in ("alone", "of") else "right", no_wrap=True)
    table.add_row(
        "rollout engine", *_line(rates.rollout.step_s, rates.rollout.token_s), "token", f"{rates.rollout.cores:.2f}"
    )
    table.add_row("judge", *_line(rates.judging.call_s, rates.judging.group_s), "group", f"{rates.judging.cores:.2f}")
    table.add_row("learner", *_line(rates.learn.step_s, rates.learn.token_s), "token", f"{rates.learn.cores:.2f}")
    table.add_row("new weights", f"{rates.publish.load_s:.3g}", "", "", f"{rates.publish.cores:.2f}")
    print_table(console, table)
    if rates.share_cores:
        say(f"with all cores busy, each has {rates.crowding:.0%} of its speed")
    say(f"{out}: rates of {rates.machine}. Next: solon plan {path} --rates {out}")
    return rates.model_dump(mode="json")


def _line(fixed_s: float, each_s: float) -> tuple[str, str]:
    return f"{fixed_s:.3g}", f"{each_s:.3g}"
