"""Labels a group: lists the items to judge, has them judged, and aggregates the verdicts to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solon.constitution.constitution import Asked, Constitution
from solon.constitution.rules import PrincipleSampling
from solon.engines.thinking import with_thought
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item, Judge, sound
from solon.feedback.reward import rewards, rule_of
from solon.records import Feedback, Group, Label, Rollout
from solon.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class _Plan:
    """A planned label: a question and its rollouts."""

    asked: Asked
    rollouts: tuple[int, ...]
    item: Item


class Labeler:
    """`await labeler.label(group)`. Raises InputError when the constitution lacks questions for the task."""

    def __init__(self, judge: Judge, *, config: FeedbackConfig, constitution: Constitution) -> None:
        constitution.for_task(config.task)
        rule_of(constitution, config)  # refuse an invalid rule before the first question
        self._judge = judge
        self._config = config
        self._constitution = constitution

    async def label(self, group: Group) -> Feedback:
        """Labels of all rollouts under all principles that apply, and the resulting rewards."""
        asked = self._choose(group)
        plans = [
            _Plan(one, rollouts, _item(self._config, group, one, rollouts))
            for rollouts in self._subjects(group)
            for one in asked
        ]
        verdicts = [sound(verdict) for verdict in await self._judge.judge([plan.item for plan in plans])]
        labels = tuple(_label(plan, verdict) for plan, verdict in zip(plans, verdicts, strict=True))
        return Feedback(
            ordinal=group.ordinal,
            attempt=group.attempt,
            rewards_G=rewards(
                labels,
                num_rollouts=len(group.rollouts),
                principles=tuple({one.principle.id: one.principle for one in asked}.values()),
                constitution=self._constitution,
                config=self._config,
            ),
            labels=labels,
        )

    def num_labels(self, group: Group) -> int:
        """Number of labels that `label` makes of a group."""
        return len(self._subjects(group)) * len(self._choose(group))

    def _choose(self, group: Group) -> tuple[Asked, ...]:
        asked = self._constitution.questions_for(self._config.task, group.prompt)
        applying = list(dict.fromkeys(one.principle.id for one in asked))
        match self._config.principles_per_group:
            case None:
                sampling = self._constitution.sampling
            case 0:
                sampling = PrincipleSampling()
            case k:
                sampling = PrincipleSampling(mode="k_random", k=k)
        drawn = sampling.draw(applying, prompt_id=group.prompt.prompt_id, ordinal=group.ordinal)
        return tuple(one for one in asked if one.principle.id in drawn)

    def _subjects(self, group: Group) -> list[tuple[int, ...]]:
        """Rollouts judged together. All questions about one subject follow each other: they share it."""
        if self._config.task == "pairwise":
            return [*ring_pairs(len(group.rollouts), self._config.comparisons)]
        return [(index,) for index in range(len(group.rollouts))]


def _item(config: FeedbackConfig, group: Group, asked: Asked, rollouts: Sequence[int]) -> Item:
    answers = [group.rollouts[i] for i in rollouts]
    cut = tuple(answer.is_cut for answer in answers) if config.tell_cut else ()
    return Item(
        task=config.task,
        conversation=group.conversation,
        answers=tuple(_shown(answer, config) for answer in answers),
        principle_id=asked.principle.id,
        question=asked.question,
        polarity=asked.polarity,
        scale=asked.scale,
        cut=cut if any(cut) else (),
    )


def _shown(answer: Rollout, config: FeedbackConfig) -> str:
    """What the judge sees of an answer."""
    if config.show_thoughts == "none":
        return answer.text
    return with_thought(answer.text, answer.thought, marked=config.show_thoughts == "marked")


def _label(plan: _Plan, verdict: Verdict) -> Label:
    return Label(
        task=plan.item.task,
        principle_id=plan.item.principle_id,
        question_id=plan.asked.question_id,
        rollouts=plan.rollouts,
        verdict=verdict,
    )


def ring_pairs(num_rollouts: int, comparisons: int) -> list[tuple[int, int]]:
    """Compare each answer with its next `comparisons` neighbours on a ring; every pair once.

    >>> ring_pairs(4, 1)
    [(0, 1), (1, 2), (2, 3), (3, 0)]
    """
    seen: set[frozenset[int]] = set()
    pairs = []
    for distance in range(1, comparisons + 1):
        for first in range(num_rollouts):
            pair = (first, (first + distance) % num_rollouts)
            if pair[0] != pair[1] and frozenset(pair) not in seen:
                seen.add(frozenset(pair))
                pairs.append(pair)
    return pairs
