"""`solon label`: prompts and answers in, preferences out. No training run, no cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solon.cli.label_settings import LabelRequest, LabelSettings, WriteOptions, model_name, refuse_secrets, require_same
from solon.cli.label_view import LabelView
from solon.cli.names import resolver
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.engines.lengths import engine_config, lowered
from solon.errors import InputError, RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source, host_judge
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.judges.program_file import ProgramFile
from solon.feedback.labelling.budget import Budget
from solon.feedback.labelling.dataset import AnswerFile, AnswerRow, SkippedRow, load_answers
from solon.feedback.labelling.label_run import LabelRun
from solon.feedback.labelling.writing import unwritable
from solon.feedback.panels.panel_config import CascadeSection, JurySection
from solon.feedback.spending.spend import spent_usd
from solon.runs.directory import RunDirectory


def run_label(request: LabelRequest, *, as_json: bool) -> dict[str, Any]:
    """Label a file into a directory, continuing an earlier start. Raises InputError before any engine starts where
    possible."""
    settings = LabelSettings.of(request.overrides)
    refuse_secrets(request, settings)
    names = [request.judge, request.constitution, request.policy, str(request.source), settings.select.proxy]
    names += settings.feedback.panel
    path = resolver(names, progress=not as_json)
    constitution = Constitution.load(path(request.constitution))
    constitution.for_task(settings.feedback.task)
    least = 2 if settings.feedback.task == "pairwise" else 1
    source = load_answers(path(str(request.source)), least=least, read=settings.data)
    if source.unanswered and not request.policy:
        source = _without_unanswered(source)
    if source.unanswered:
        source = _without_unwritable(source, path(request.policy), settings.write)
    asked_about = (row.prompt for row in (*source.rows, *source.unanswered))
    constitution.require_arguments(settings.feedback.task, asked_about)
    judge, *others = (
        _judge(path(name), settings, request.out, constitution, max_usd=request.max_usd)
        for name in (request.judge, *settings.feedback.panel)
    )
    directory = RunDirectory.reopen(request.out)
    require_same(directory, request, settings, constitution, judge)
    show = LabelView(quiet=as_json)
    for said in source.notes:
        show.note(said)
    for engine in (judge, *others):
        if isinstance(engine, EngineConfig) and (note := lowered(engine, settings.judging)) is not None:
            show.note(note)
    try:
        rows = list(source.rows)
        if source.unanswered:
            rows += _written(directory, source.unanswered, path(request.policy), settings, show)
        labelled, weights, usd = _selected(directory, rows, path, constitution, settings, request, show)
        left_usd = None if request.max_usd is None else max(0.0, request.max_usd - usd)
        budget = Budget(labels=request.max_labels, usd=left_usd)
        work = _Work(
            directory=directory,
            rows=labelled,
            skipped=source.skipped,
            weights=weights,
            sources=[judge, *others],
            constitution=constitution,
            feedback=settings.feedback,
            budget=budget,
        )
        summary = asyncio.run(_label(work, show))
    finally:
        directory.close()
    show.end(summary, directory.path)
    return summary


def _judge(
    name: str, settings: LabelSettings, out: Path, constitution: Constitution, *, max_usd: float | None
) -> Source:
    """A model's engine, or an endpoint that spends at most `max_usd` in this start. Raises InputError when it cannot be
    built."""
    from cluster.preflight.checks import check_judge

    feedback, options = settings.feedback, settings.judging
    check_judge(
        name,
        feedback.template,
        trusted=options.trust_remote_code,
        options=options,
        feedback=feedback,
        constitution=constitution,
    )
    if not EndpointFile.names(name):
        return engine_config(name, settings.judging, seed=settings.seed)
    file = load_judge_file(name)
    if isinstance(file, ProgramFile):
        return file
    limits = file.limits
    if limits.max_usd is None and max_usd is None:
        return file
    spend_file, caps = limits.spend_file, []
    if limits.max_usd is not None:
        # Every start of this directory counts against the cap of the file.
        spend_file = spend_file or str((out / "spend.json").absolute())
        caps.append(limits.max_usd)
    if max_usd is not None:
        caps.append(max_usd + (spent_usd(spend_file) if spend_file else 0.0))
    return file.model_copy(
        update={"limits": limits.model_copy(update={"spend_file": spend_file, "max_usd": min(caps)})}
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The rows to label, the judge, and the output directory."""

    directory: RunDirectory
    rows: Sequence[AnswerRow]
    skipped: Sequence[SkippedRow]
    weights: Mapping[str, float]
    sources: Sequence[Source]
    constitution: Constitution
    feedback: FeedbackConfig
    budget: Budget


async def _label(work: _Work, show: LabelView) -> dict[str, Any]:
    from solon.feedback.labelling.finished import finished_rows
    from solon.feedback.prompting.secret import nonce_secret

    directory = work.directory
    done = finished_rows(directory.path)
    if all(row.row_id in done for row in work.rows):
        judge: Any = _NoJudge()  # no row is left: no engine is built
        provenance: dict[str, Any] = {}
    else:
        source, *others = work.sources
        show.note(f"starting the judge {model_name(source)}")
        feedback = _with_cache(work.feedback, directory.path)
        judge = host_judge(source, feedback, work.constitution, name="judge", others=others, secret=nonce_secret())
        try:
            provenance = dataclasses.asdict(await judge.start())
        except BaseException:
            await judge.close()
            raise
    run = LabelRun(
        directory,
        judge,
        config=work.feedback,
        constitution=work.constitution,
        provenance={"run_id": directory.path.name, **provenance},
        budget=work.budget,
        weights=work.weights,
        on_change=show.progress,
    )
    try:
        with _stopping(run.stop), show.live(len(work.rows)):
            return await run.run(work.rows, work.skipped)
    finally:
        await judge.close()


def _selected(
    directory: RunDirectory,
    rows: Sequence[AnswerRow],
    path: Callable[[str], str],
    constitution: Constitution,
    settings: LabelSettings,
    request: LabelRequest,
    show: LabelView,
) -> tuple[list[AnswerRow], dict[str, float], float]:
    """The rows to label, their weights, and the cost in USD of choosing them: a proxy labels all of them first, where
    one is configured."""
    from solon.feedback.labelling.row_selection import proxy_margins, select_rows, write_selection

    chosen = settings.select
    if chosen.rate == 1:
        return list(rows), {}, 0.0
    margins: dict[str, float] = {}
    usd = 0.0
    if chosen.policy != "random":
        beside = RunDirectory.reopen(directory.path / "proxy")
        feedback = settings.feedback.model_copy(
            update={"calibration": "", "cascade": CascadeSection(), "jury": JurySection()}
        )
        work = _Work(
            directory=beside,
            rows=rows,
            skipped=(),
            weights={},
            sources=[_judge(path(chosen.proxy), settings, request.out, constitution, max_usd=request.max_usd)],
            constitution=constitution,
            feedback=feedback,
            budget=Budget(usd=request.max_usd),
        )
        try:
            summary = asyncio.run(_label(work, show))
        finally:
            beside.close()
        if summary["status"] != "completed":
            cause = summary.get("failure") or summary.get("budget") or "start the same command again to continue"
            raise RunFailedError(f"the proxy {chosen.proxy} has not labelled all rows: {cause}")
        usd = summary["this_start"]["usd"]
        margins = proxy_margins(beside.path, rows, constitution, feedback)
    found = select_rows(rows, margins, chosen, seed=settings.seed)
    write_selection(directory.path, found)
    drawn = {one.item_id: one.weight for one in found if one.selected}
    show.note(f"{len(drawn)} of {len(rows)} rows are labelled ({chosen.policy}); propensities in selection.jsonl")
    return [row for row in rows if row.row_id in drawn], drawn, usd


class _NoJudge:
    """Takes the judge's place when every row is already labelled."""

    name = "none"

    async def judge(self, items: Sequence[Any]) -> list[Any]:
        raise AssertionError(f"{len(items)} items to judge, though every row was labelled")

    async def close(self) -> None: ...


def _with_cache(config: FeedbackConfig, directory: Path) -> FeedbackConfig:
    """Verdicts are kept on disk beside the labels, unless another place is configured."""
    if config.cache.path or not config.cache.entries:
        return config
    return config.model_copy(
        update={"cache": config.cache.model_copy(update={"path": str(directory / "verdicts.sqlite")})}
    )


def _without_unanswered(source: AnswerFile) -> AnswerFile:
    if not source.rows:
        raise InputError(
            f"none of the {len(source.unanswered)} rows has answers, expected a column `answers`; add one, or let a "
            "model write them with --policy"
        )
    reason = "has no answers; add `answers`, or let a model write them with --policy"
    unanswered = tuple(SkippedRow(number=row.number, row_id=row.row_id, reason=reason) for row in source.unanswered)
    skipped = tuple(sorted((*source.skipped, *unanswered), key=lambda row: row.number))
    return dataclasses.replace(source, unanswered=(), skipped=skipped)


def _without_unwritable(source: AnswerFile, policy: str, write: WriteOptions) -> AnswerFile:
    """Drops the prompts that the policy cannot answer: its chat template refuses them, or they are too long."""
    found = unwritable(source.unanswered, EngineConfig(model=policy, **write.engine.model_dump()), write.max_tokens)
    gone = {row.row_id for row in found}
    left = tuple(row for row in source.unanswered if row.row_id not in gone)
    if not left and not source.rows:
        raise InputError(
            f"{policy} can answer none of the {len(found)} prompts: {found[0].place} {found[0].reason}; change the "
            "prompts, write.max_tokens or write.engine.max_model_len"
        )
    skipped = tuple(sorted((*source.skipped, *found), key=lambda row: row.number))
    return dataclasses.replace(source, unanswered=left, skipped=skipped)


def _written(
    directory: RunDirectory, prompts: Sequence[AnswerRow], policy: str, settings: LabelSettings, show: LabelView
) -> list[AnswerRow]:
    """The prompts with a policy's answers; generated once, read back by a later start."""
    from cluster.preflight.checks import check_model
    from solon.feedback.labelling.writing import write_answers

    trusted = settings.write.engine.trust_remote_code
    check_model(policy, role="policy", opt_in="write.engine", trusted=trusted)
    show.note(f"{policy} writes {settings.write.answers} answers to each of {len(prompts)} prompts")
    return asyncio.run(
        write_answers(
            directory,
            prompts,
            engine_config(policy, settings.write.engine, seed=settings.seed),
            answers=settings.write.answers,
            sampling=settings.write.sampling(),
            seed=settings.seed,
        )
    )


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM finish the work in flight; a second one ends at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    seen = False

    def on_signal() -> None:
        nonlocal seen
        if seen and task is not None:
            task.cancel()
        seen = True
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
