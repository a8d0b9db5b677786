"""`solon evaluate A B ...`: policies side by side on held-out prompts, the others compared to the first one.

policies ──answers──▶ programs or a judge ──scores──▶ table, evaluation.json
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError, RunFailedError
from solon.evaluation.comparison import by_principle, change, mean, win_rate
from solon.evaluation.degenerate import degenerate, distinct_pairs
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source, host_judge
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.dataset import AnswerRow, first_rows, text_group
from solon.feedback.pairwise import pair_margins
from solon.feedback.prompting.secret import nonce_secret
from solon.feedback.reward import rule_of
from solon.files.data_config import ReadConfig
from solon.files.json_text import json_text, write_lines
from solon.files.overrides import settings_from
from solon.files.whole_file import write_whole
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.records import Feedback, Group, Prompt


class EvaluateSettings(BaseModel):
    """Every setting that `--set` can change: `--set sampling.max_tokens=256`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampling: SamplingOptions = SamplingOptions()
    engine: EngineOptions = EngineOptions()
    """Of the policies."""
    judging: EngineOptions = EngineOptions()
    """Of the judge."""
    feedback: FeedbackConfig = FeedbackConfig()
    data: ReadConfig = ReadConfig()
    """Column and split of the prompts."""
    seed: int = Field(0, ge=0, lt=2**31)


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
    pairwise: bool = True
    """With a judge: also whose answers are preferred to those of the first policy."""
    overrides: Sequence[str] = ()
    settings: EvaluateSettings | None = None
    """In place of `overrides`."""


@dataclass(slots=True)
class Answered:
    """A policy's answers and their scores. P prompts, S answers to each."""

    model: str
    answers_PS: list[list[str]]
    scores_P: list[dict[str, float]] = field(default_factory=list)
    """Share of the answers to each prompt that keep each principle."""
    margins_P: list[float | None] = field(default_factory=list)
    """Log-odds that the first answer is better than the first policy's."""


def run_evaluate(request: EvaluateRequest, *, as_json: bool) -> dict[str, Any]:
    """Raises InputError before any engine starts where possible."""
    settings = request.settings or settings_from(EvaluateSettings, {}, request.overrides)
    path = resolver([*request.models, request.prompts, request.judge, request.constitution], progress=not as_json)
    judge, rows = check_evaluation(request, settings, path)
    prompts = [row.prompt for row in rows]
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    found = []
    for model in request.models:
        console.print(f"{model} answers {len(prompts)} prompts", markup=False)
        place = policy_of(path(model))
        found.append(Answered(model, asyncio.run(_answers(place, prompts, settings, request.samples))))
    texts = [
        {"row_id": row.row_id, "answers": {one.model: one.answers_PS[number] for one in found}}
        for number, row in enumerate(rows)
    ]
    try:
        write_lines(request.out / "answers.jsonl", texts)
    except OSError as error:
        raise RunFailedError(f"--out {request.out} cannot be written: {error}; free space") from error
    asyncio.run(_score(found, prompts, settings, request, judge))
    scores = [
        {"row_id": row.row_id, "scores": {one.model: one.scores_P[number] for one in found}}
        for number, row in enumerate(rows)
    ]
    write_lines(request.out / "scores.jsonl", scores)
    result = _result(found, prompts, settings, request)
    write_whole(request.out / "evaluation.json", json_text(result, indent=1), what="evaluation")
    print_table(console, _table(result))
    console.print(f"written to {request.out}", markup=False)
    return result


def check_evaluation(
    request: EvaluateRequest, settings: EvaluateSettings, path: Callable[[str], str]
) -> tuple[tuple[Source, Constitution] | None, list[AnswerRow]]:
    """The judge and its constitution (None: programs decide), and the prompts. Checks all that can be checked before
    answers are written. Raises InputError."""
    if bool(request.judge) == bool(request.evaluator) or bool(request.judge) != bool(request.constitution):
        raise InputError(
            "expected --judge with --constitution, or --evaluator: who decides whether answers keep a principle; "
            "give one of the two"
        )
    judge = _judge(request, settings, path)
    return judge, first_rows(path(request.prompts), request.max_prompts, read=settings.data)


def _judge(
    request: EvaluateRequest, settings: EvaluateSettings, path: Callable[[str], str]
) -> tuple[Source, Constitution] | None:
    from cluster.evaluate import PROGRAMS
    from cluster.preflight.checks import check_judge

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
    rules.for_task("pointwise")
    if len(request.models) > 1 and request.pairwise:
        rules.for_task("pairwise")
    check_judge(
        judge,
        settings.feedback.template,
        trusted=settings.judging.trust_remote_code,
        options=settings.judging,
        feedback=settings.feedback,
        constitution=rules,
    )
    return (load_judge_file(judge) if judge.endswith(".toml") else engine_config(judge, settings.judging)), rules


def policy_of(path: str) -> str:
    """The model of a path: a run's last checkpoint, the model of a stage, or the path itself."""
    latest = Path(path) / "checkpoints" / "LATEST"
    if latest.is_file():
        return str(latest.parent / latest.read_text(encoding="utf-8").strip() / "policy")
    inner = Path(path) / "model"
    return str(inner) if (inner / "config.json").is_file() else path


async def _answers(model: str, prompts: Sequence[Prompt], settings: EvaluateSettings, samples: int) -> list[list[str]]:
    from cluster.preflight.checks import check_model

    check_model(model, role="policy", opt_in="engine", trusted=settings.engine.trust_remote_code)
    engine = engine_config(model, settings.engine, seed=settings.seed)
    rollout = RolloutSettings(sampling=settings.sampling.sampling(), group_size=1, seed=settings.seed)
    worker = RolloutWorker(engine, rollout, name="policy")
    await worker.start()
    try:
        rounds = [await worker.answer(prompts, seed=settings.seed + number) for number in range(samples)]
    finally:
        await worker.close()
    return [list(answers) for answers in zip(*rounds, strict=True)]


async def _score(
    found: Sequence[Answered],
    prompts: Sequence[Prompt],
    settings: EvaluateSettings,
    request: EvaluateRequest,
    judge: tuple[Source, Constitution] | None,
) -> None:
    if judge is None:
        await _by_programs(found, prompts, request.evaluator)
        return
    source, rules = judge
    single = settings.feedback.model_copy(update={"task": "pointwise"})
    groups = [
        text_group(number, prompt, answers)
        for one in found
        for number, (prompt, answers) in enumerate(zip(prompts, one.answers_PS, strict=True))
    ]
    labelled = iter(await _labelled(source, single, rules, groups))
    for one in found:
        one.scores_P = [_kept(next(labelled), request.samples) for _ in prompts]
    first, *others = found
    if not others or not request.pairwise:
        return
    pairwise = settings.feedback.model_copy(update={"task": "pairwise"})
    groups = [
        text_group(number, prompt, (one.answers_PS[number][0], first.answers_PS[number][0]))
        for one in others
        for number, prompt in enumerate(prompts)
    ]
    labelled = iter(await _labelled(source, pairwise, rules, groups))
    for one in others:
        one.margins_P = [_preferred(next(labelled), rules, pairwise) for _ in prompts]


async def _by_programs(found: Sequence[Answered], prompts: Sequence[Prompt], evaluator: str) -> None:
    from cluster.evaluate import ProgramEvaluator

    decide = ProgramEvaluator(evaluator)
    for one in found:
        for number, prompt in enumerate(prompts):
            judged = await decide([prompt] * len(one.answers_PS[number]), one.answers_PS[number])
            one.scores_P.append(_averaged([item.obeys for item in judged]))


async def _labelled(
    source: Source, feedback: FeedbackConfig, rules: Constitution, groups: Sequence[Group]
) -> list[Feedback]:
    judge = host_judge(source, feedback, rules, name="judge", secret=nonce_secret())
    try:
        await judge.start()
        labeler = Labeler(judge, config=feedback, constitution=rules)
        return list(await asyncio.gather(*(labeler.label(group) for group in groups)))
    finally:
        await judge.close()


def _kept(feedback: Feedback, samples: int) -> dict[str, float]:
    """Share of the answers to a prompt that keep each principle; a principle with an invalid label is left out."""
    from cluster.evaluate import obeyed

    by_answer = [[label for label in feedback.labels if label.rollouts == (number,)] for number in range(samples)]
    return _averaged([obeyed(labels) for labels in by_answer])


def _averaged(obeys: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    names = {name for one in obeys for name in one}
    return {
        name: sum(held) / len(held) for name in sorted(names) for held in ([one[name] for one in obeys if name in one],)
    }


def _preferred(feedback: Feedback, rules: Constitution, config: FeedbackConfig) -> float | None:
    asked = {label.principle_id for label in feedback.labels}
    margins = pair_margins(
        feedback.labels,
        principles=[principle for principle in rules.principles if principle.id in asked],
        rule=rule_of(rules, config),
        clip=config.margin_clip,
    )
    return margins.get((0, 1))


def _result(
    found: Sequence[Answered], prompts: Sequence[Prompt], settings: EvaluateSettings, request: EvaluateRequest
) -> dict[str, Any]:
    base = by_principle(found[0].scores_P)
    policies = []
    for one in found:
        scores = by_principle(one.scores_P)
        flat = [answer for answers in one.answers_PS for answer in answers]
        kinds = Counter(
            degenerate(answer, prompt.messages[-1].content)
            for prompt, answers in zip(prompts, one.answers_PS, strict=True)
            for answer in answers
        )
        row: dict[str, Any] = {
            "model": one.model,
            "scores": {name: asdict(mean(values)) for name, values in scores.items()},
            "mean": asdict(mean(_mean_of(one.scores_P))),
            "degenerate": {kind: kinds[kind] / len(flat) for kind in ("empty", "repeats", "copies")},
            "words": sum(len(answer.split()) for answer in flat) / len(flat),
            "distinct_2": distinct_pairs(flat, most=_fewest_pairs(found)),
        }
        if one is not found[0]:
            row["change"] = {
                name: asdict(change(base[name], values)) for name, values in scores.items() if name in base
            }
            row["mean_change"] = asdict(change(_mean_of(found[0].scores_P), _mean_of(one.scores_P)))
            if one.margins_P:
                row["wins"] = asdict(win_rate(one.margins_P, tie=settings.feedback.tie_band))
        policies.append(row)
    return {"prompts": len(prompts), "samples": request.samples, "policies": policies}


def _mean_of(scores_P: Sequence[Mapping[str, float]]) -> list[float]:
    """Mean over the principles that apply to each prompt; NaN where none does."""
    return [sum(one.values()) / len(one) if one else float("nan") for one in scores_P]


def _fewest_pairs(found: Sequence[Answered]) -> int:
    return min(
        sum(max(0, len(answer.split()) - 1) for answers in one.answers_PS for answer in answers) for one in found
    )


def _table(result: Mapping[str, Any]) -> Table:
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
    if any("wins" in one for one in policies):
        table.add_row("preferred to the first", *(_wins(one.get("wins")) for one in policies))
    for kind in ("empty", "repeats", "copies"):
        table.add_row(f"degenerate: {kind}", *(f"{one['degenerate'][kind]:.1%}" for one in policies))
    table.add_row("words", *(f"{one['words']:.1f}" for one in policies))
    table.add_row("distinct pairs of words", *(f"{one['distinct_2']:.3f}" for one in policies))
    return table


def _cell(score: Mapping[str, float] | None, moved: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    text = f"{score['value']:.3f}"
    return f"{text} ({moved['value']:+.3f}, {moved['low']:+.3f} to {moved['high']:+.3f})" if moved else text


def _wins(wins: Mapping[str, Any] | None) -> str:
    if wins is None:
        return ""
    rate = wins["rate"]
    return f"{rate['value']:.3f} ({wins['wins']} won, {wins['ties']} tied, {wins['losses']} lost)"
