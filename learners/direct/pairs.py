"""Preference pairs and rated answers of a fixed data set, as token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.core.batch import Batch

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """Two answers to a prompt. AnswerPair(prompt=(1, 5), first=(9, 2), second=(7, 2))"""

    prompt: Tokens
    """The conversation up to the answer, the assistant's opening included."""
    first: Tokens
    """The answer with the tokens that end it, as the policy generates it."""
    second: Tokens
    p: float = 1.0
    """Probability that the first answer is the better one."""
    weight: float = 1.0
    """How much the pair counts; 0 leaves it out."""
    reference: tuple[float, float] | None = None
    """Log-probs of both answers under the reference, nats; None: not known yet."""

    def __post_init__(self) -> None:
        if not (0 <= self.p <= 1 and 0 <= self.weight < math.inf):
            raise ValueError(f"a pair with p = {self.p} and weight = {self.weight}, expected 0 <= p <= 1, weight >= 0")
        if not (self.prompt and self.first and self.second):
            raise ValueError("a pair with an empty prompt or answer, expected at least one token in each")
        if self.first == self.second and self.p in (0, 1):
            raise ValueError("a pair of two equal answers with a certain label, expected different answers or p = 0.5")
        _check_reference(self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedAnswer:
    """One answer to a prompt. RatedAnswer(prompt=(1, 5), answer=(9, 2), good=1.0)"""

    prompt: Tokens
    answer: Tokens
    """With the tokens that end it."""
    good: float
    """Probability that the answer is good."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.good <= 1 and 0 <= self.weight < math.inf):
            raise ValueError(
                f"an answer with good = {self.good} and weight = {self.weight}, expected 0 <= good <= 1, weight >= 0"
            )
        if not (self.prompt and self.answer):
            raise ValueError("a rated answer whose prompt or answer is empty, expected at least one token in each")


def batch_of(answers: Sequence[tuple[Tokens, Sequence[Tokens]]]) -> Batch:
    """Prompts, each with its answers, in the layout of a learner's batch. They carry no rewards and no versions."""
    tokens = [answer for _, some in answers for answer in some]
    groups = [group for group, (_, some) in enumerate(answers) for _ in some]
    length_R = np.array([len(answer) for answer in tokens], np.int64)
    nothing = tuple((None,) * len(some) for _, some in answers)
    return Batch(
        ordinals=tuple(range(len(answers))),
        prompts=tuple(np.array(prompt, np.int64) for prompt, _ in answers),
        group_rewards=nothing,
        baseline_rewards=nothing,
        group_R=np.array(groups, np.int64),
        member_R=np.array([member for _, some in answers for member in range(len(some))], np.int64),
        length_R=length_R,
        start_R=np.cumsum(length_R) - length_R,
        reward_R=np.zeros(len(tokens), np.float32),
        truncated_R=np.zeros(len(tokens), np.bool_),
        token_N=np.concatenate([np.array(answer, np.int64) for answer in tokens]),
        behaviour_N=np.zeros(int(length_R.sum()), np.float32),
        version_N=np.zeros(int(length_R.sum()), np.int64),
        rollout_N=np.repeat(np.arange(len(tokens)), length_R),
    )


def batch_of_pairs(pairs: Sequence[AnswerPair]) -> Batch:
    """Pair i has the rollouts 2 i and 2 i + 1."""
    return batch_of([(pair.prompt, (pair.first, pair.second)) for pair in pairs])


def batch_of_ratings(answers: Sequence[RatedAnswer]) -> Batch:
    """Answer i is rollout i."""
    return batch_of([(one.prompt, (one.answer,)) for one in answers])


def _check_reference(reference: tuple[float, float] | None) -> None:
    if reference is not None and not all(math.isfinite(value) for value in reference):
        raise ValueError(f"a pair with reference log-probs {reference}, expected finite numbers")
