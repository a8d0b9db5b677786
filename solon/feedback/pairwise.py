"""From comparisons of a group's answers to margins of pairs, and from these to one reward per answer.

    labels ──rule, pair by pair──▶ margins of pairs ──least squares──▶ rewards

The rule that weighs principles is applied to each pair separately, as in `solon label`: under `lexicographic` an answer
that loses a hard principle to a better neighbour has lost one comparison, and has broken nothing.
"""

# G answers of a group

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from solon.constitution.constitution import Principle
from solon.constitution.rules import Aggregation, Weighed
from solon.records import Label

Pair = tuple[int, int]
Combination = Literal["least_squares", "mean"]


def pair_margins(
    labels: Sequence[Label], *, principles: Sequence[Principle], rule: Aggregation, clip: float
) -> dict[Pair, float]:
    """Margin of every pair with a valid label under each principle; positive favours the first answer.

    A pair with an invalid label has no margin: a mean over the remaining principles would look like a correct label.
    clip: most nats that one principle counts.
    """
    by_pair: dict[Pair, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for label in labels:
        by_pair[label.rollouts[0], label.rollouts[1]][label.principle_id].append(label.margin)
    margins = {}
    for pair, by_principle in by_pair.items():
        found = []
        for principle in principles:
            said = [margin for margin in by_principle[principle.id] if margin is not None]
            if said and len(said) == len(by_principle[principle.id]):
                found.append(Weighed(sum(said) / len(said), principle.weight, principle.severity == "hard"))
        if found and len(found) == len(principles):
            margins[pair] = rule.preference(found, clip=clip)
    return margins


def combined(
    margins: Mapping[Pair, float], *, num_rollouts: int, method: Combination, ridge: float
) -> tuple[float | None, ...]:
    """One reward per answer, nats, relative to the others; None for an answer without a comparison.

    `least_squares`: the s that minimise sum (margin_ij - (s_i - s_j))^2 + ridge * sum s_i^2. Their differences explain
    the margins, so that an answer is measured by the quality of its neighbours, and theirs, around the whole group.
    They sum to zero over every set of answers connected by comparisons. `mean`: of the margins for and against the
    answer. Both are linear in the margins, so margins that are right on average give rewards that are: see
    `solon.feedback.selection.estimators.doubly_robust`.
    """
    normal_GG, signed_G, count_G = np.eye(num_rollouts) * ridge, np.zeros(num_rollouts), np.zeros(num_rollouts)
    for (first, second), margin in margins.items():
        for one, other, said in ((first, second, margin), (second, first, -margin)):
            normal_GG[one, one] += 1
            normal_GG[one, other] -= 1
            signed_G[one] += said
            count_G[one] += 1
    squares = method == "least_squares"
    reward_G = np.linalg.solve(normal_GG, signed_G) if squares else signed_G / np.maximum(count_G, 1)
    return tuple(float(reward) if count else None for reward, count in zip(reward_G, count_G, strict=True))
