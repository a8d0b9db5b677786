"""`solon judges compare` and `solon judges quantise`: reads their inputs, runs them, shows the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.judge_inputs import JudgeInputs, model_path
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.errors import InputError
from solon.feedback.quality.intervals import Interval
from solon.feedback.trials.candidates import comparing, distinctly_named, measure_apart, parse_candidate
from solon.feedback.trials.comparison import Comparison, JudgeRow, compare
from solon.feedback.trials.measuring import Measurement
from solon.files.json_text import json_text

if TYPE_CHECKING:
    from solon.report.figures import JudgePoint

BATCH_LENGTH = {"vllm": "prefix", "transformers": "length"}
"""The order of questions that suits each engine: one has a prefix cache, the other pads."""


def run_compare(
    models: Sequence[str],
    *,
    pairs: str,
    constitution: Path | None,
    template: str | None,
    out: Path | None,
    usd_per_hour: float,
    limit: int,
    parts: int,
    threads: int,
    max_model_len: int,
    chat: Sequence[str] | None = None,
    as_json: bool,
) -> dict[str, Any]:
    """Raises InputError when a model, the pairs or the constitution cannot be used."""
    inputs = JudgeInputs(
        models,
        pairs=pairs,
        constitution=constitution,
        template=template,
        limit=limit,
        threads=threads,
        max_model_len=max_model_len,
        chat=chat,
        as_json=as_json,
    )
    console, rules, words, gold = inputs.console, inputs.constitution, inputs.template, inputs.pairs
    candidates = distinctly_named([parse_candidate(one, inputs.engine, resolve=inputs.path) for one in models])
    measurements: list[Measurement] = []
    for number, candidate in enumerate(candidates, start=1):
        console.print(Text(visible(f"{number}/{len(candidates)}  {candidate.name}: {candidate.runs_as}")))
        feedback = comparing(words, batch_order=BATCH_LENGTH[candidate.engine.backend])
        measurements.append(measure_apart(candidate, gold, rules, feedback, parts=parts))
    comparison = compare(measurements, gold, usd_per_hour=usd_per_hour)
    print_table(console, table("what judges cost", COST, comparison))
    print_table(console, table("what judges are worth", QUALITY, comparison))
    console.print(Text(footnote(comparison)), soft_wrap=True)
    result = {"pairs": pairs, "constitution": rules.id, "constitution_hash": rules.hash, "template": words}
    result |= asdict(comparison)
    if out is not None:
        _write(out, result, comparison)
        console.print(Text(visible(f"written to {out}")), soft_wrap=True)
    return result


def run_quantise(
    source: Path,
    target: Path,
    *,
    scheme: str,
    pairs: str | None,
    constitution: Path | None,
    template: str | None,
    samples: int,
    chat: Sequence[str] | None = None,
    as_json: bool,
) -> dict[str, Any]:
    """Raises InputError when the scheme or the model cannot be used, or calibration data is missing."""
    from compression.judge_prompts import judge_sequences
    from compression.quantise import quantise_model, scheme_named

    calibration: list[list[int]] = []
    named = scheme_named(scheme)
    source = Path(model_path(str(source), progress=not as_json))
    if named.gptq:
        if pairs is None:
            raise InputError(
                f"{scheme} is calibrated on judge prompts, got none; give --pairs and --constitution, or take "
                f"{scheme.removesuffix('-gptq')}, which needs no data"
            )
        inputs = JudgeInputs([], pairs=pairs, constitution=constitution, template=template, limit=samples,
                             chat=chat, held_out=False, as_json=as_json)  # fmt: skip
        calibration = judge_sequences(
            str(source),
            [item for pair in inputs.pairs for item in pair.items],
            template=inputs.template,
            preamble=inputs.constitution.preamble,
            limit=samples,
            settings=inputs.engine,
        )
    record = quantise_model(source, target, scheme, calibration=calibration)
    if not as_json:
        shrunk = record.source_weight_bytes / record.weight_bytes
        lines = [
            f"{target}: {record.layers} layers in {scheme}, {_size(record.weight_bytes)} ({shrunk:.1f} times smaller)"
        ]
        if record.calibration_sequences:
            lines.append(f"calibrated on {record.calibration_sequences} judge prompts")
        Console(highlight=False).print(Text(visible("\n".join([*lines, *filter(None, [record.note])]))), soft_wrap=True)
    return asdict(record)


Columns = Sequence[tuple[str, Callable[[JudgeRow], str]]]
COST: Columns = (
    ("verdicts/s", lambda row: f"{row.verdicts_per_s:.4g}"),
    ("speed-up", lambda row: f"{row.speedup:.2f}"),
    ("on disk", lambda row: _size(row.disk_bytes)),
    ("process", lambda row: _size(row.resident_bytes)),
    ("$/1k", lambda row: "" if row.usd_per_1k is None else f"{row.usd_per_1k:.3g}"),
    ("invalid", lambda row: f"{row.invalid:.1%}"),
)
QUALITY: Columns = (
    ("agreement", lambda row: _share(row.agreement)),
    ("lost", lambda row: "" if row.lost_points is None else f"{row.lost_points:+.1f}"),
    ("p", lambda row: "" if row.p is None else f"{row.p:.2g}"),
    ("flips", lambda row: "" if row.flips is None else f"{row.flips.value:.1%}"),
    ("kappa", lambda row: f"{row.kappa.value:.3f}"),
    ("consistent", lambda row: "" if row.position_consistency is None else f"{row.position_consistency.value:.1%}"),
    ("ECE", lambda row: f"{row.ece.value:.3f}"),
)


def table(title: str, columns: Columns, comparison: Comparison) -> Table:
    """One line for each judge."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)  # fits eighty columns
    shown.add_column("judge", overflow="fold")
    for name, _ in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        shown.add_row(Text(visible(row.name)), *(cell(row) for _, cell in columns))
    return shown


def footnote(comparison: Comparison) -> str:
    """What the figures refer to."""
    first = comparison.rows[0].name
    return visible(
        f"{comparison.common} pairs of {comparison.pairs}: decided by gold ({comparison.decided}) and answered by "
        f"every judge. Verdicts in both orders. Speed-up, lost (points), p (McNemar) and flips against {first}. ECE of "
        f"margins as they are; noise alone would make {comparison.rows[0].ece_floor:.3f} of it for {first}. Process: "
        "peak memory, libraries included. $/1k: dollars per thousand labels."
    )


def _write(out: Path, result: dict[str, Any], comparison: Comparison) -> None:
    from solon.report.figures import frontier, reliability, write_page

    rows = comparison.rows
    speed = frontier([_point(row, row.verdicts_per_s) for row in rows], cost="labels/s")
    figures = {"What speed costs in agreement": speed}
    if priced := [_point(row, row.usd_per_1k) for row in rows if row.usd_per_1k is not None]:
        figures["What agreement costs"] = frontier(priced, cost="usd/1k")
    figures["How sure the judges are, and how often they are right"] = reliability(
        {row.name: row.reliability for row in rows}, folded=True
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "judges.json").write_text(json_text(result, indent=2) + "\n", encoding="utf-8")
    write_page(figures, out / "judges.html", title="Judges compared", notes=[footnote(comparison)])


def _point(row: JudgeRow, cost: float) -> JudgePoint:
    from solon.report.figures import JudgePoint

    memory = f"{_size(row.disk_bytes)} of weights, process {_size(row.resident_bytes)}"
    return JudgePoint(name=row.name, cost=cost, quality=row.agreement, note=f"{row.runs_as}; {memory}")


def _share(interval: Interval) -> str:
    half = max(interval.high - interval.value, interval.value - interval.low)
    return f"{interval.value:.1%} ±{100 * half:.1f}"


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"
