"""`solon judges test`, `calibrate` and `cascade`: one judge against pairs with gold verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from solon.cli.judge_inputs import LONGEST, JudgeInputs
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.engines.base import EngineConfig
from solon.engines.lengths import engine_config, lowered
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import HostedJudge, Source, host_judge
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.prompting.secret import nonce_secret
from solon.feedback.prompting.swap import SwapConfig
from solon.feedback.quality.intervals import Interval
from solon.feedback.trials.examination import Examination, SubsetResult, examine
from solon.feedback.trials.gold import GoldPair
from solon.verdicts import Verdict


def run_test(inputs: JudgeInputs, model: str, *, calibration: str = "") -> dict[str, Any]:
    """How often the judge prefers the right answer, subset by subset."""
    examination, _, _ = _examined(inputs, model, calibration=calibration)
    print_table(inputs.console, _table(examination))
    inputs.console.print(
        Text(
            f"mean of subsets {examination.mean_of_subsets:.1%}. Verdicts in both orders; `one order` is what asking "
            "once would have given. A pair without a verdict counts as wrong."
        ),
        soft_wrap=True,
    )
    return {"judge": model, **asdict(examination)}


def run_calibrate(inputs: JudgeInputs, model: str, *, out: Path, seed: int = 0) -> dict[str, Any]:
    """Fits a calibration on pairs and writes the file that `feedback.calibration` names."""
    import numpy as np

    from solon.feedback.quality.calibration import calibrate_principles
    from solon.feedback.quality.calibration_book import CalibrationBook

    _, verdicts, identity = _examined(inputs, model)
    raw, targets, principles, prompts = [], [], [], []
    for pair, said in zip(_decided(inputs.pairs), verdicts, strict=True):
        for item, verdict in zip(pair.items, said, strict=True):
            # A pair under several principles has one gold verdict for all of them together, none for each.
            if verdict.raw_margin is not None and verdict.status.valid and len(pair.items) == 1:
                raw.append(verdict.raw_margin)
                targets.append(pair.target)
                principles.append(item.principle_id)
                prompts.append(pair.prompt_id)
    if not raw:
        raise InputError(
            "no pair names its principle and got a verdict, expected rows with `principle`: a calibration is fitted on "
            "single questions; add `principle` to the pairs"
        )
    found = calibrate_principles(
        "pairwise", raw, targets, principles, rng=np.random.default_rng(seed), clusters_N=prompts
    )
    CalibrationBook(found, identity=identity.calibrated_for, judge=identity.judge_id).save(out)
    table = Table("principle", "temperature", "pairs", "ECE before", "ECE after", title_justify="left")
    table.title = Text(visible(str(out)))
    for one in found:
        name = one.principle_id or "(all)"
        before, after = _interval(one.before.ece), _interval(one.after.ece)
        table.add_row(Text(visible(name)), f"{one.temperature:.3f}", str(one.pairs), before, after)
    print_table(inputs.console, table)
    for one in found:
        if one.warning:
            about = one.principle_id or "all principles"
            inputs.console.print(Text(visible(f"{about}: {one.warning}")), soft_wrap=True)
    return {"file": str(out), "judge": model, "calibrations": [one.model_dump(mode="json") for one in found]}


def run_cascade(
    inputs: JudgeInputs, model: str, *, alpha: float, delta: float, calibration: str = ""
) -> dict[str, Any]:
    """Fits the uncertainty up to which this judge may decide alone."""
    from solon.feedback.panels.cascade import fit_threshold, measured_against

    _, verdicts, _ = _examined(inputs, model, calibration=calibration)
    flat = [(v, pair.target) for pair, said in zip(_decided(inputs.pairs), verdicts, strict=True) for v in said]
    doubts, errors = measured_against([v for v, _ in flat], [target for _, target in flat])
    found = fit_threshold(doubts, errors, alpha, delta)
    inputs.console.print(
        Text(
            f"threshold {found.value:.3f} bits: the judge decides {found.coverage:.1%} alone, wrong in "
            f"{found.error:.1%} of them, below {found.bound:.1%} with confidence {1 - delta:g} ({found.pairs} pairs). "
            f"Set feedback.cascade.threshold = {found.value:.3f}; fit it again when the policy has changed."
        ),
        soft_wrap=True,
    )
    return {"judge": model, **asdict(found)}


def _examined(
    inputs: JudgeInputs, model: str, *, calibration: str = ""
) -> tuple[Examination, list[list[Verdict]], JudgeIdentity]:
    if EndpointFile.names(model) and inputs.engine.chat_template_args:
        raise InputError(
            "--chat got an argument, but the judge is an endpoint, which runs its chat template itself; put it into "
            "the endpoint file: extra = { chat_template_kwargs = { … } }"
        )
    config = FeedbackConfig(
        task="pairwise",
        template=inputs.template,
        swap=SwapConfig(orders="both"),
        calibration=calibration,
    )
    source: Source = (
        load_judge_file(model)
        if EndpointFile.names(model)
        else engine_config(inputs.path(model), inputs.engine, default=LONGEST)
    )
    if isinstance(source, EngineConfig) and (note := lowered(source, inputs.engine)) is not None:
        inputs.console.print(Text(visible(note)), soft_wrap=True)

    async def ask() -> tuple[Examination, list[list[Verdict]], JudgeIdentity]:
        judge: HostedJudge = host_judge(source, config, inputs.constitution, name="judge", secret=nonce_secret())
        try:
            identity = await judge.start()
            examination, verdicts = await examine(judge, inputs.pairs)
        finally:
            await judge.close()
        return examination, verdicts, identity

    return asyncio.run(ask())


def _decided(pairs: Sequence[GoldPair]) -> list[GoldPair]:
    return [pair for pair in pairs if pair.is_decided]


def _table(examination: Examination) -> Table:
    table = Table("subset", "pairs", "accuracy", "one order", "both orders agree", "ties", "no verdict")
    rows = examination.subsets if len(examination.subsets) > 1 else ()
    for row in (*rows, examination.whole):
        table.add_row(*_cells(row))
    return table


def _cells(row: SubsetResult) -> tuple[str | Text, ...]:
    one = "" if row.one_order is None else f"{row.one_order:.1%}"
    agree = "" if row.consistent is None else f"{row.consistent.value:.1%}"
    accuracy = _interval(row.accuracy, share=True)
    return Text(visible(row.subset)), str(row.pairs), accuracy, one, agree, str(row.ties), str(row.invalid)


def _interval(found: Interval, *, share: bool = False) -> str:
    spell = "{:.1%}" if share else "{:.3f}"
    return f"{spell.format(found.value)} [{spell.format(found.low)}, {spell.format(found.high)}]"
