"""Held-out evaluation by an evaluator that never rewarded the policy."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from solon.records import Group, Label, Prompt, Rollout
from solon.recovery.supervised_lanes import ask_any

if TYPE_CHECKING:
    from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedRollout

Scores = dict[str, float]
"""Share of answers that obey each principle, and their `mean`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The result of an evaluator for one answer."""

    obeys: dict[str, bool]
    """By principle; a principle that does not apply, or of which a question has no valid label, is left out."""
    labels: tuple[Label, ...] = ()
    """The labels behind it, where a judge was asked."""


class Evaluator(Protocol):
    """Scores answers to held-out prompts."""

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Judged]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Answers to the held-out prompts, and their scores."""

    prompts: Sequence[Prompt]
    answers: Sequence[str]
    judged: Sequence[Judged]

    @property
    def scores(self) -> Scores:
        return mean_scores([one.obeys for one in self.judged])

    def rows(self) -> list[dict[str, Any]]:
        """For `heldout-*.json`: one object per prompt, described in docs/data.md."""
        return [
            {
                "prompt_id": prompt.prompt_id,
                "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
                "tags": list(prompt.tags),
                "answer": answer,
                "scores": {name: float(obeyed) for name, obeyed in judged.obeys.items()},
                "score": sum(judged.obeys.values()) / len(judged.obeys) if judged.obeys else None,
                "labels": [
                    {
                        "principle_id": label.principle_id,
                        "question_id": label.question_id,
                        "status": str(label.status),
                        "margin": label.margin,
                    }
                    for label in judged.labels
                ],
            }
            for prompt, answer, judged in zip(self.prompts, self.answers, self.judged, strict=True)
        ]


async def evaluate(
    lanes: Collection[SupervisedRollout], prompts: Sequence[Prompt], evaluator: Evaluator, *, seed: int
) -> Evaluation:
    """Answers of the current policy, sampled as in training, and their scores. Before and after use one seed."""
    answers = await ask_any(lanes, lambda lane: lane.answer(prompts, seed=seed))
    return Evaluation(prompts=prompts, answers=answers, judged=await evaluator(prompts, answers))


PROGRAMS = {"nursery": "nursery.sets.programs", "english": "english.sets.programs"}
"""Modules whose `adherence(prompt, answer)` decides which principles an answer keeps, by the evaluator's name."""


class ProgramEvaluator:
    """Programs decide, without a model. `ProgramEvaluator("nursery")`"""

    def __init__(self, name: str) -> None:
        self._module = PROGRAMS[name]

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Judged]:
        adherence = importlib.import_module(self._module).adherence
        return [Judged(obeys=adherence(p, a)) for p, a in zip(prompts, answers, strict=True)]


class AuditEvaluator:
    """The constitution's yes/no questions, put to another judge."""

    def __init__(self, judge: SupervisedJudge) -> None:
        self._judge = judge

    async def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Judged]:
        found = []
        for ordinal, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            feedback = await self._judge.label_group(as_group(ordinal, prompt, answer))
            found.append(Judged(obeys=obeyed(feedback.labels), labels=feedback.labels))
        return found


def obeyed(labels: Sequence[Label]) -> dict[str, bool]:
    """Whether one answer obeys each principle: all of its questions must support it. A principle of which a question
    has no valid label is left out."""
    margins: dict[str, list[float | None]] = defaultdict(list)
    for label in labels:
        margins[label.principle_id].append(label.margin)
    return {
        principle: all(margin > 0 for margin in found if margin is not None)
        for principle, found in margins.items()
        if None not in found
    }


def as_group(ordinal: int, prompt: Prompt, answer: str) -> Group:
    """A text that was not generated here, in the form that judges accept."""
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
