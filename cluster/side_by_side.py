"""Policies answer the same prompts, and programs or a judge score the answers: `solon evaluate`, and a stage of an
alignment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cluster.evaluate import ProgramEvaluator, obeyed
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.sampling import SamplingOptions
from solon.evaluation.attacks import as_judged
from solon.evaluation.results import Answered
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source, host_judge
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.dataset import text_group
from solon.feedback.prompting.secret import nonce_secret
from solon.feedback.reward import preference_margin
from solon.files.data_config import ReadConfig
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.records import Feedback, Group, Prompt
from solon.verdicts import Task


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


@dataclass(frozen=True, slots=True)
class JudgeScorer:
    """Scores answers by the constitution's yes/no questions to a judge, and compares policies by its preferences."""

    source: Source
    rules: Constitution
    feedback: FeedbackConfig

    @classmethod
    def of(cls, judge: str, constitution: str, settings: EvaluateSettings) -> JudgeScorer:
        """judge: a model's path or an endpoint's file. Raises InputError."""
        source = load_judge_file(judge) if judge.endswith(".toml") else engine_config(judge, settings.judging)
        return cls(source, Constitution.load(constitution), settings.feedback)

    async def score(self, found: Sequence[Answered], prompts: Sequence[Prompt]) -> None:
        """Fills `scores_P`. Attacked prompts are shown to the judge in their plain form."""
        config = self._config("pointwise")
        groups = [
            text_group(number, prompt, answers)
            for one in found
            for number, (prompt, answers) in enumerate(zip(as_judged(prompts), one.answers_PS, strict=True))
        ]
        labelled = iter(await self._labelled(config, groups))
        for one in found:
            one.scores_P = [_kept(next(labelled), len(answers)) for answers in one.answers_PS]

    async def compare(self, found: Sequence[Answered], prompts: Sequence[Prompt]) -> None:
        """Fills `margins_P` of all but the first."""
        first, *others = found
        config = self._config("pairwise")
        groups = [
            text_group(number, prompt, (one.answers_PS[number][0], first.answers_PS[number][0]))
            for one in others
            for number, prompt in enumerate(as_judged(prompts))
        ]
        labelled = iter(await self._labelled(config, groups))
        for one in others:
            one.margins_P = [preference_margin(next(labelled), self.rules, config) for _ in prompts]

    def _config(self, task: Task) -> FeedbackConfig:
        """About every principle that applies, unless the settings name a number."""
        number = self.feedback.principles_per_group or 0
        return self.feedback.model_copy(update={"task": task, "principles_per_group": number})

    async def _labelled(self, config: FeedbackConfig, groups: Sequence[Group]) -> list[Feedback]:
        judge = host_judge(self.source, config, self.rules, name="judge", secret=nonce_secret())
        try:
            await judge.start()
            labeler = Labeler(judge, config=config, constitution=self.rules)
            return list(await asyncio.gather(*(labeler.label(group) for group in groups)))
        finally:
            await judge.close()


async def score_by_programs(found: Sequence[Answered], prompts: Sequence[Prompt], evaluator: str) -> None:
    """Fills `scores_P`. evaluator: one of `cluster.evaluate.PROGRAMS`."""
    decide = ProgramEvaluator(evaluator)
    for one in found:
        for number, prompt in enumerate(prompts):
            judged = await decide([prompt] * len(one.answers_PS[number]), one.answers_PS[number])
            one.scores_P.append(_averaged([item.obeys for item in judged]))


async def answers(model: str, prompts: Sequence[Prompt], settings: EvaluateSettings, samples: int) -> list[list[str]]:
    """Answers of a policy to each prompt, [P][S]. model: a path or hub name."""
    engine = engine_config(model, settings.engine, seed=settings.seed)
    rollout = RolloutSettings(sampling=settings.sampling.sampling(), group_size=1, seed=settings.seed)
    worker = RolloutWorker(engine, rollout, name="policy")
    await worker.start()
    try:
        rounds = [await worker.answer(prompts, seed=settings.seed + number) for number in range(samples)]
    finally:
        await worker.close()
    return [list(found) for found in zip(*rounds, strict=True)]


def policy_of(path: str) -> str:
    """The model of a path: a run's last checkpoint, the model of a stage, or the path itself."""
    latest = Path(path) / "checkpoints" / "LATEST"
    if latest.is_file():
        return str(latest.parent / latest.read_text(encoding="utf-8").strip() / "policy")
    inner = Path(path) / "model"
    return str(inner) if (inner / "config.json").is_file() else path


def _kept(feedback: Feedback, samples: int) -> dict[str, float]:
    """Share of the answers to a prompt that keep each principle; a principle with an invalid label is left out."""
    by_answer = [[label for label in feedback.labels if label.rollouts == (number,)] for number in range(samples)]
    return _averaged([obeyed(labels) for labels in by_answer])


def _averaged(obeys: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    names = {name for one in obeys for name in one}
    return {
        name: sum(held) / len(held) for name in sorted(names) for held in ([one[name] for one in obeys if name in one],)
    }
