"""`solon evaluate A B ...`: policies side by side on held-out prompts, the others compared to the first one.

policies ──answers──▶ programs or a judge ──scores──▶ table, evaluation.json, evaluation.html
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.constitution.constitution import Constitution
from solon.errors import InputError, RunFailedError
from solon.evaluation.results import KINDS, Answered, results, tagged
from solon.feedback.labelling.dataset import AnswerRow, first_rows
from solon.files.json_text import json_text, write_lines
from solon.files.overrides import settings_from
from solon.files.whole_file import write_whole
from solon.verdicts import Task

if TYPE_CHECKING:
    from cluster.side_by_side import EvaluateSettings, JudgeScorer


FILES = ("evaluation.json", "evaluation.html", "answers.jsonl", "scores.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """The arguments of the command line."""

    models: Sequence[str]
    prompts: str
    out: Path
    evaluator: str = ""
    judge: str = ""
    constitution: str = ""
    max_prompts: int = 256
    samples: int = 1
    by: str = ""
    """Also the scores of the prompts under each tag that begins so."""
    pairwise: bool = True
    """With a judge: also whose answers are preferred to those of the first policy."""
    overrides: Sequence[str] = ()
    settings: EvaluateSettings | None = None
    """In place of `overrides`."""


def run_evaluate(request: EvaluateRequest, *, as_json: bool) -> dict[str, Any]:
    """Raises InputError before any engine starts where possible."""
    from cluster.side_by_side import EvaluateSettings, policy_of

    settings = request.settings or settings_from(EvaluateSettings, {}, request.overrides)
    path = resolver([*request.models, request.prompts, request.judge, request.constitution], progress=not as_json)
    judge, rows = check_evaluation(request, settings, path)
    places = {model: policy_of(path(model)) for model in request.models}
    _check_policies(places, settings)
    prompts = [row.prompt for row in rows]
    for name in FILES:  # of an earlier evaluation: they must not stand beside files of this one
        (request.out / name).unlink(missing_ok=True)
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    found = []
    for model, place in places.items():
        console.print(f"{model} answers {len(prompts)} prompts", markup=False)
        found.append(Answered(model, _answers(place, prompts, settings, request.samples)))
        _write(request.out / "answers.jsonl", rows, "answers", {one.model: one.answers_PS for one in found})
    asyncio.run(_score(found, prompts, request, judge))
    require_judged(found, request.evaluator)
    _write(request.out / "scores.jsonl", rows, "scores", {one.model: one.scores_P for one in found})
    result = results(found, prompts, samples=request.samples, tie=settings.feedback.tie_band, by=request.by)
    write_whole(request.out / "evaluation.json", json_text(result, indent=1), what="evaluation")
    _write_page(result, request)
    print_table(console, table_of(result))
    console.print(f"written to {request.out}: evaluation.json, evaluation.html, answers.jsonl", markup=False)
    return result


def require_judged(found: Sequence[Answered], evaluator: str = "") -> None:
    """Raises RunFailedError where no prompt of a policy has a score."""
    for one in found:
        if not one.judged and evaluator:
            raise RunFailedError(f"the programs {evaluator!r} decide nothing about prompts of this kind; give a judge")
        if not one.judged:
            raise RunFailedError(
                f"the judge gave no valid verdict on any answer of {one.model}, so there is nothing to compare; ask it "
                "about one answer with `solon check CONSTITUTION --judge JUDGE`, or raise judging.max_model_len"
            )


def check_evaluation(
    request: EvaluateRequest, settings: EvaluateSettings, path: Callable[[str], str]
) -> tuple[JudgeScorer | None, list[AnswerRow]]:
    """The judge (None: programs decide), and the prompts. Checks all that can be checked before answers are written.
    Raises InputError."""
    if bool(request.judge) == bool(request.evaluator) or bool(request.judge) != bool(request.constitution):
        raise InputError(
            "expected --judge with --constitution, or --evaluator: who decides whether answers keep a principle; "
            "give one of the two"
        )
    judge = _judge(request, settings, path)
    rows = first_rows(path(request.prompts), request.max_prompts + 1, read=settings.data)
    if len(rows) > request.max_prompts:
        rows = rows[: request.max_prompts]
        print(
            f"note: only the first {request.max_prompts} of the prompts are used; --max-prompts takes more",
            file=sys.stderr,
        )
    if request.by and not tagged([row.prompt for row in rows], request.by):
        raise InputError(
            f"--by {request.by}: no prompt has a tag `{request.by}:…`; name the beginning of tags, or leave it out"
        )
    return judge, rows


def _judge(request: EvaluateRequest, settings: EvaluateSettings, path: Callable[[str], str]) -> JudgeScorer | None:
    from cluster.evaluate import PROGRAMS
    from cluster.preflight.checks import check_judge
    from cluster.side_by_side import JudgeScorer

    if len(set(request.models)) < len(request.models):
        raise InputError(f"got {' '.join(request.models)}, expected different policies; remove the repeated one")
    if settings.feedback.panel:
        raise InputError("feedback names further judges, expected one judge for an evaluation; remove them")
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {request.out} cannot be used: {error.strerror}; choose another directory") from None
    if request.evaluator:
        if request.evaluator not in PROGRAMS:
            raise InputError(f"--evaluator {request.evaluator}: expected one of {', '.join(sorted(PROGRAMS))}")
        return None
    rules, judge = Constitution.load(path(request.constitution)), path(request.judge)
    compares = len(request.models) > 1 and request.pairwise
    tasks: tuple[Task, ...] = ("pointwise", "pairwise") if compares else ("pointwise",)
    for task in tasks:
        rules.for_task(task)
        check_judge(
            judge,
            settings.feedback.template,
            trusted=settings.judging.trust_remote_code,
            options=settings.judging,
            feedback=settings.feedback.model_copy(update={"task": task}),
            constitution=rules,
        )
    return JudgeScorer.of(judge, path(request.constitution), settings)


def _check_policies(places: Mapping[str, str], settings: EvaluateSettings) -> None:
    from cluster.preflight.checks import check_model

    for place in places.values():
        check_model(place, role="policy", opt_in="engine", trusted=settings.engine.trust_remote_code)


def _answers(place: str, prompts: Sequence[Any], settings: EvaluateSettings, samples: int) -> list[list[str]]:
    from cluster.side_by_side import answers

    return asyncio.run(answers(place, prompts, settings, samples))


async def _score(
    found: Sequence[Answered], prompts: Sequence[Any], request: EvaluateRequest, judge: JudgeScorer | None
) -> None:
    if judge is None:
        from cluster.side_by_side import score_by_programs

        await score_by_programs(found, prompts, request.evaluator)
        return
    await judge.score(found, prompts)
    if len(found) > 1 and request.pairwise:
        await judge.compare(found, prompts)


def _write(path: Path, rows: Sequence[AnswerRow], what: str, by_model: Mapping[str, Sequence[Any]]) -> None:
    lines = [
        {
            "row_id": row.row_id,
            "prompt": [{"role": m.role, "content": m.content} for m in row.prompt.messages],
            "tags": list(row.prompt.tags),
            what: {model: values[number] for model, values in by_model.items()},
        }
        for number, row in enumerate(rows)
    ]
    try:
        write_lines(path, lines)
    except OSError as error:
        raise RunFailedError(f"--out {path.parent} cannot be written: {error}; free space") from error


def _write_page(result: Mapping[str, Any], request: EvaluateRequest) -> None:
    from solon.report.evaluation import figures
    from solon.report.figures import write_page

    scored_by = f"programs ({request.evaluator})" if request.evaluator else f"the judge {request.judge}"
    notes = [
        f"{result['prompts']} prompts, {result['samples']} answers to each, scored by {scored_by}. Bars are 95 % "
        "bootstrap intervals over prompts; evaluation.json has the paired differences from the first policy."
    ]
    write_page(figures(result["policies"]), request.out / "evaluation.html", title="Evaluation", notes=notes)


def table_of(result: Mapping[str, Any]) -> Table:
    """One row for each principle and figure, one column for each policy."""
    policies = result["policies"]
    table = Table(box=SIMPLE_HEAD, title=f"{result['prompts']} prompts", title_justify="left")
    table.add_column("")
    for policy in policies:
        table.add_column(policy["model"], overflow="fold")
    names = sorted({name for policy in policies for name in policy["scores"]})
    for name in names:
        table.add_row(name, *(_cell(one["scores"].get(name), one.get("change", {}).get(name)) for one in policies))
    table.add_row("mean by prompt", *(_cell(one["mean"], one.get("mean_change")) for one in policies))
    for tag in policies[0].get("by", {}):
        table.add_row(tag, *(_tag_cell(one["by"][tag]) for one in policies))
    if any("wins" in one for one in policies):
        table.add_row("preferred to the first", *(_wins(one.get("wins")) for one in policies))
    if any(one["judged"] < 1 for one in policies):
        table.add_row("prompts with a valid verdict", *(f"{one['judged']:.1%}" for one in policies))
    for kind in KINDS:
        table.add_row(f"degenerate: {kind}", *(f"{one['degenerate'][kind]:.1%}" for one in policies))
    table.add_row("words", *(f"{one['words']:.1f}" for one in policies))
    table.add_row("distinct pairs of words", *(f"{one['distinct_2']:.3f}" for one in policies))
    return table


def _cell(score: Mapping[str, float] | None, moved: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    text = f"{score['value']:.3f}"
    return f"{text} ({moved['value']:+.3f}, {moved['low']:+.3f} to {moved['high']:+.3f})" if moved else text


def _tag_cell(row: Mapping[str, Any]) -> str:
    text = _cell(row["mean"], row.get("change"))
    if none := row.get("from_none"):
        text += f"; {none['value']:+.3f} from none"
    return text + (f"; {row['degenerate']:.0%} degenerate" if row["degenerate"] else "")


def _wins(wins: Mapping[str, Any] | None) -> str:
    if wins is None:
        return ""
    rate = wins["rate"]
    return f"{rate['value']:.3f} ({wins['wins']} won, {wins['ties']} tied, {wins['losses']} lost)"
