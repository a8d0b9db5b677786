"""From the labels of a group to one reward per rollout, or none.

A rollout with an invalid label has no reward: neither a zero nor a mean over the principles that happened to
work, for both would be wrong labels that look like right ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from solon.constitution import Constitution, Principle
from solon.constitution_rules import Aggregation, Weighed
from solon.feedback.config import FeedbackConfig
from solon.records import Label


def rewards(
    labels: Sequence[Label], *, num_rollouts: int, principles: Sequence[Principle], rule: Aggregation, clip: float
) -> tuple[float | None, ...]:
    """Rewards of G rollouts in nats; None where a label is missing. Their range is that of `rule.reward`.

    principles: those that were asked about. clip: nats that a margin counts at most.
    """
    margins: dict[tuple[int, str], list[float | None]] = defaultdict(list)
    is_pairwise = any(label.task == "pairwise" for label in labels)
    for label in labels:
        for place, rollout in enumerate(label.rollouts):
            sign = 1.0 if place == 0 else -1.0
            margins[rollout, label.principle_id].append(
                None if label.margin is None else sign * max(-clip, min(clip, label.margin))
            )

    def reward(rollout: int) -> float | None:
        found = []
        for principle in principles:
            mean = _mean(margins[rollout, principle.id], one_is_enough=is_pairwise)
            if mean is None:
                return None
            found.append(Weighed(mean, principle.weight, principle.severity == "hard"))
        return rule.reward(found, clip=clip) if found else None

    return tuple(reward(rollout) for rollout in range(num_rollouts))


def rule_of(constitution: Constitution, config: FeedbackConfig) -> Aggregation:
    """How margins are weighed against each other: as the constitution says, unless the configuration overrides it."""
    if not config.aggregation:
        return constitution.aggregation
    return constitution.aggregation.model_copy(update={"method": config.aggregation})


def _mean(margins: Sequence[float | None], *, one_is_enough: bool) -> float | None:
    """Of one principle's questions about one rollout.

    A pairwise principle puts the same question several times: one valid comparison is enough for a number. The
    predicates of a principle are different questions: none may be missing.
    """
    valid = [margin for margin in margins if margin is not None]
    if not valid or (len(valid) < len(margins) and not one_is_enough):
        return None
    return sum(valid) / len(valid)
