"""Runs a compression and shows what the gate measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.errors import InputError
from solon.files.json_text import json_text
from solon.files.whole_file import write_whole

if TYPE_CHECKING:
    from compression.pairs import Pair
    from compression.request import Request
    from compression.sensitivity import Sweeper


MOST_GOLD = 20_000
"""Gold pairs of a judge that are read."""


def run_compress(
    model: str,
    *,
    pairs: Path,
    max_tokens: int,
    constitution: Path | None,
    template: str | None,
    formats: tuple[str, ...],
    prune: str,
    workers: int,
    gpus_per_worker: float,
    as_json: bool,
    size: float | None,
    **settings: Any,
) -> dict[str, Any]:
    """Raises InputError before anything is written where possible, RunFailedError when the model disagrees with itself
    or is not served."""
    from cluster.side_by_side import policy_of
    from compression.pruning.plan import Pruning
    from compression.request import Request, check
    from compression.workflow import Compression
    from solon.models.formats import SEARCHED, format_named

    if size == 0:
        raise InputError("--size is 0, expected a share of the bytes of the linear layers, such as 0.3")
    path = resolver([model], progress=not as_json)
    for name in formats:
        format_named(name)
    request = Request(
        model=Path(policy_of(path(model))),
        formats=formats or SEARCHED,
        pruning=Pruning.parsed(prune),
        size=size or 0.0,
        **settings,
    )
    sweeper = _sweeper(workers, gpus_per_worker, request)
    check(request)  # before pairs are read, which takes long
    if request.role == "judge":
        read = _judge_pairs(request.model, pairs, constitution, template, max_tokens, as_json=as_json)
    elif constitution or template:
        raise InputError("--constitution and --template are of a judge; leave them out, or give --role judge")
    else:
        read = _policy_pairs(request.model, Path(path(str(pairs))), max_tokens)
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    with Progress(console=Console(stderr=True, quiet=as_json), transient=True) as progress:
        task = progress.add_task("sweeps", total=1.0, visible=False)
        work = Compression(
            request,
            read,
            say=lambda text: console.print(text, markup=False),
            tick=lambda share: progress.update(task, completed=share, visible=share < 1),
            sweeper=sweeper,
            write_report=_write_report,
        )
        report = work.run()
    print_table(console, table_of(report))
    console.print("\n".join([*_agreements(report), _said(report, work.work)]), markup=False)
    return report


def _sweeper(workers: int, gpus_per_worker: float, request: Request) -> Sweeper | None:
    """None: sweeps are measured in this process. Raises InputError."""
    from compression.request import NO_SWEEPS

    if not workers:
        if gpus_per_worker:
            raise InputError(
                f"--gpus-per-worker is {gpus_per_worker:g} without workers; give --workers, or leave it out"
            )
        return None
    if request.role == "reward_model":
        raise InputError("--workers measure log-probs, and a reward model has none; leave it out")
    if not request.sweeps:
        raise InputError(f"--workers measure sweeps, {NO_SWEEPS}; leave it out")
    from cluster.sweeps import RaySweeper

    return RaySweeper(workers=workers, gpus_per_worker=gpus_per_worker)


def _policy_pairs(model: Path, path: Path, max_tokens: int) -> list[Pair]:
    from compression.reading import policy_pairs

    found, skipped = policy_pairs(model, path, max_tokens=max_tokens)
    if skipped:
        typer.echo(f"note: {len(skipped)} rows left out; the first: {skipped[0][0]}: {skipped[0][1]}", err=True)
    return found


def _judge_pairs(
    model: Path, pairs: Path, constitution: Path | None, template: str | None, max_tokens: int, *, as_json: bool
) -> list[Pair]:
    from compression.judge_prompts import judge_pairs
    from solon.cli.judge_inputs import JudgeInputs

    inputs = JudgeInputs(
        [], pairs=str(pairs), constitution=constitution, template=template, limit=MOST_GOLD, chat=None, held_out=True,
        as_json=as_json,
    )  # fmt: skip
    return judge_pairs(
        str(model),
        inputs.pairs,
        template=inputs.template,
        preamble=inputs.constitution.preamble,
        max_tokens=max_tokens,
        settings=inputs.engine,
    )


def table_of(report: Mapping[str, Any]) -> Table:
    """The figures of the last candidate."""
    last = report["candidates"][-1]
    table = Table(box=SIMPLE_HEAD, title=f"{last['formats']}, {last['algorithm']}", title_justify="left")
    for column in ("harm", "measured", "upper bound", "threshold", "prompts", ""):
        table.add_column(column, overflow="fold")
    for row in last["rows"]:
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['value']:+.5f}",
        f"{row['high']:+.5f}",
        f"{row['threshold']:g}",
        f"{row['prompts']:,}",
        row["outcome"],
    ]


def _said(report: Mapping[str, Any], work: Path) -> str:
    from compression.served_check import said

    linear, files = report["linear_bytes"], report["file_bytes"]
    sizes = (
        f"linear layers {linear['before']:,} -> {linear['after']:,} bytes "
        f"({linear['before'] / linear['after']:.2f} times smaller; {linear['after'] / linear['in_16_bits']:.0%} of the "
        f"original in 16 bits), files {files['before']:,} -> {files['after']:,}"
    )
    if left_out := report.get("not_measured"):
        sizes += f"\nnot measured: {', '.join(left_out)} (--answers 0)"
    if report["out"]:
        speed = f"\n{said(report['speed'])}" if report.get("speed") else ""
        return (
            f"accepted: {sizes}{speed}\nwritten to {report['out']} with certificate.json, report.json and report.html"
        )
    return f"rejected: {sizes}\nnothing was written to the output; the report is in {work}"


def _agreements(report: Mapping[str, Any]) -> list[str]:
    """How well cheaper figures rank the layers."""
    found = []
    if (tau := report.get("ranking_agreement")) is not None:
        found.append(f"Rank agreement of preferences and perplexity about the layers: Kendall's tau {tau:.2f}.")
    if (rho := report.get("screen_agreement")) is not None:
        found.append(f"Rank agreement of gradients and sweeps about the layers that were swept: Spearman {rho:.2f}.")
    return found


def _write_report(report: Mapping[str, Any], place: Path) -> None:
    write_whole(place / "report.json", json_text(report, indent=1), what="report")
    _write_page(report, place / "report.html")


def _write_page(report: Mapping[str, Any], path: Path) -> None:
    import plotly.graph_objects as go

    from solon.report.figures import _layout, write_page

    last = report["candidates"][-1]
    rows = last["rows"]
    harms = go.Figure(layout=_layout("share of its threshold", ""))
    harms.add_trace(
        go.Bar(
            y=[row["name"] for row in rows],
            x=[row["high"] / row["threshold"] for row in rows],
            orientation="h",
            name="upper bound",
        )
    )
    harms.add_vline(x=1.0)
    harms.update_yaxes(autorange="reversed")
    harms.update_layout(meta={"columns": ["harm", "measured", "upper bound", "threshold", "prompts", ""],
                              "rows": [_cells(row) for row in rows]})  # fmt: skip
    figures = {"What the gate measured": harms}
    if front := report.get("front"):
        trade = go.Figure(layout=_layout("share of the bytes of the linear layers", "soft flips, predicted"))
        trade.add_trace(go.Scatter(x=[p["share"] for p in front], y=[p["cost"] for p in front], mode="lines+markers"))
        trade.update_layout(
            meta={
                "columns": ["share of the bytes", "soft flips, predicted"],
                "rows": [[f"{p['share']:.3f}", f"{p['cost']:.4f}"] for p in front],
            }
        )
        figures["Size and harm"] = trade
    notes = [
        f"{report['model']}: {report['verdict']}, as {report['reason']}.",
        "A harm is accepted when its upper bound is below its threshold. " + _said(report, path.parent),
        *_agreements(report),
        *(
            f"Candidate {c['name']}: {c['formats']}, {c['algorithm']}: {c['verdict']}, {c['reason']}"
            for c in report["candidates"]
        ),
    ]
    write_page(figures, path, title="Compression", notes=notes)
