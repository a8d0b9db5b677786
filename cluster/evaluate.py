"""Held-out evaluation, by somebody who never rewarded the policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from solon.records import Group, Prompt, Rollout

if TYPE_CHECKING:
    from solon.guarded import GuardedJudge, GuardedRollout

Scores = dict[str, float]
"""Share of answers that obey each principle, and their `mean`."""


class Evaluator(Protocol):
    """Scores answers to held-out prompts."""

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Scores: ...


async def evaluate(
    lanes: Sequence[GuardedRollout], prompts: Sequence[Prompt], evaluator: Evaluator, *, seed: int
) -> tuple[Scores, list[str]]:
    """Answers by the current policy, sampled as in training, and their scores. Before and after use one seed."""
    lane = next((lane for lane in lanes if lane.guard.is_up), lanes[0])
    answers = await lane.answer(prompts, seed=seed)
    return await evaluator(prompts, answers), answers


class OracleEvaluator:
    """The nursery's programmatic oracles."""

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Scores:
        from nursery.oracles import adherence

        return mean_scores([adherence(p, a) for p, a in zip(prompts, answers, strict=True)])


class AuditEvaluator:
    """The constitution's yes/no questions, asked of another judge."""

    def __init__(self, judge: GuardedJudge) -> None:
        self._judge = judge

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Scores:
        found: list[dict[str, bool]] = []
        for ordinal, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            feedback = await self._judge.label_group(as_group(ordinal, prompt, answer))
            found.append(
                {label.principle_id: label.margin > 0 for label in feedback.labels if label.margin is not None}
            )
        return mean_scores(found)


def as_group(ordinal: int, prompt: Prompt, answer: str) -> Group:
    """A text that was not generated here, in the shape that judges take."""
    rollout = Rollout(
        token_ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        segments=((0, 0),),
        finish_reason="stop",
        text=answer,
    )
    return Group(ordinal=ordinal, attempt=0, prompt=prompt, prompt_token_ids=np.zeros(0, np.int32), rollouts=(rollout,))


def mean_scores(found: Sequence[dict[str, bool]]) -> Scores:
    """Share of True by principle, and the mean over principles.

    >>> mean_scores([{"truth": True, "brevity": False}, {"truth": True}])
    {'brevity': 0.0, 'truth': 1.0, 'mean': 0.5}
    """
    by_principle: dict[str, list[bool]] = defaultdict(list)
    for answer in found:
        for principle, obeyed in answer.items():
            by_principle[principle].append(obeyed)
    scores = {principle: sum(v) / len(v) for principle, v in sorted(by_principle.items())}
    return scores | ({"mean": sum(scores.values()) / len(scores)} if scores else {})
