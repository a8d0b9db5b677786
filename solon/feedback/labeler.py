"""Labels a group: plans the questions, asks them, reads the verdicts, aggregates the reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from solon.constitution import Constitution, Principle
from solon.feedback.cache import Answer, Ask, Question, question_digest
from solon.feedback.config import FeedbackConfig
from solon.feedback.prompts import JudgePrompts
from solon.feedback.reward import rewards
from solon.feedback.verdicts import read_bool, read_pair
from solon.records import Feedback, Group, Label, Status


@dataclass(frozen=True, slots=True)
class _Plan:
    """One label to be: the principle, the rollouts, and its one (pointwise) or two (pairwise) questions."""

    principle: Principle
    rollouts: tuple[int, ...]
    questions: tuple[Question, ...]


class Labeler:
    """`await labeler.label(group)`. `max_prompt_tokens`: a longer question is not asked but `truncated`."""

    def __init__(
        self,
        ask: Ask,
        *,
        config: FeedbackConfig,
        constitution: Constitution,
        prompts: JudgePrompts,
        max_prompt_tokens: int,
    ) -> None:
        self._ask = ask
        self._config = config
        self._principles = constitution.for_task(config.task)
        self._prompts = prompts
        self._max_prompt_tokens = max_prompt_tokens

    async def label(self, group: Group) -> Feedback:
        """Labels of all rollouts under all principles that apply, and the rewards that follow."""
        principles = self._choose_principles(group)
        plans = self._plan_pairs(group, principles) if self._config.task == "pairwise" else None
        if plans is None:
            plans = self._plan_points(group, principles)
        askable = [plan for plan in plans if self._fits(plan)]
        answers = iter(await self._ask([q for plan in askable for q in plan.questions]))
        labels = [self._read(plan, [next(answers) for _ in plan.questions]) for plan in askable]
        labels += [self._too_long(plan) for plan in plans if not self._fits(plan)]
        return Feedback(
            ordinal=group.ordinal,
            attempt=group.attempt,
            rewards_G=rewards(
                labels,
                num_rollouts=len(group.rollouts),
                weights={p.id: p.weight for p in principles},
                config=self._config,
            ),
            labels=tuple(labels),
        )

    def _choose_principles(self, group: Group) -> tuple[Principle, ...]:
        applying = tuple(p for p in self._principles if p.applies_if(group.prompt))
        k = self._config.principles_per_group
        if k == 0 or k >= len(applying):
            return applying
        # Seeded by the group, not by the prompt alone: each epoch asks about other principles.
        return tuple(random.Random(f"{group.prompt.prompt_id}:{group.ordinal}").sample(applying, k))

    def _plan_points(self, group: Group, principles: Sequence[Principle]) -> list[_Plan]:
        plans = []
        for index, rollout in enumerate(group.rollouts):
            for principle in principles:
                ids = self._prompts.pointwise(group.prompt.messages, rollout.text, principle.pointwise_question)
                plans.append(_Plan(principle, (index,), (Question(ids, self._prompts.bool_ids),)))
        return plans

    def _plan_pairs(self, group: Group, principles: Sequence[Principle]) -> list[_Plan]:
        plans = []
        for first, second in ring_pairs(len(group.rollouts), self._config.comparisons):
            texts = group.rollouts[first].text, group.rollouts[second].text
            for principle in principles:
                questions = tuple(
                    Question(
                        self._prompts.pairwise(group.prompt.messages, a, b, principle.pairwise_question),
                        self._prompts.pair_ids,
                    )
                    for a, b in (texts, texts[::-1])
                )
                plans.append(_Plan(principle, (first, second), questions))
        return plans

    def _fits(self, plan: _Plan) -> bool:
        return all(len(q.prompt_token_ids) <= self._max_prompt_tokens for q in plan.questions)

    def _read(self, plan: _Plan, answers: Sequence[Answer]) -> Label:
        if self._config.task == "pairwise":
            reading = read_pair(answers[0].logprobs, answers[1].logprobs, self._config)
        else:
            reading = read_bool(answers[0].logprobs, self._config)
        return Label(
            task=self._config.task,
            principle_id=plan.principle.id,
            rollouts=plan.rollouts,
            status=reading.status,
            margin=reading.margin,
            position_offset=reading.position_offset,
            mass=reading.mass,
            prompt_tokens=sum(a.prompt_tokens for a in answers),
            cached_tokens=sum(a.cached_tokens for a in answers),
            cache_hits=sum(a.cache_hit for a in answers),
            questions=len(plan.questions),
            prompt_digests=tuple(question_digest(q) for q in plan.questions),
        )

    def _too_long(self, plan: _Plan) -> Label:
        return Label(
            task=self._config.task,
            principle_id=plan.principle.id,
            rollouts=plan.rollouts,
            status=Status.TRUNCATED,
            margin=None,
            questions=len(plan.questions),
            prompt_digests=tuple(question_digest(q) for q in plan.questions),
        )


def ring_pairs(num_rollouts: int, comparisons: int) -> list[tuple[int, int]]:
    """Each answer against its next `comparisons` neighbours on a ring; every pair once.

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
