"""From the labels of a group to one reward per rollout, or none.

A rollout with an invalid label has no reward: neither a zero nor a mean over the remaining principles, since both would
be wrong labels that look like correct ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from solon.constitution.constitution import Constitution, Principle
from solon.constitution.rules import Aggregation, Weighed
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.pairwise import combined, pair_margins
from solon.feedback.panels.selective import reward_clip
from solon.records import Feedback, Label


def rewards(
    labels: Sequence[Label],
    *,
    num_rollouts: int,
    principles: Sequence[Principle],
    constitution: Constitution,
    config: FeedbackConfig,
) -> tuple[float | None, ...]:
    """Rewards of G rollouts in nats; None where a label is missing.

    principles: those of the questions. Rewards of single answers lie in the range of `Aggregation.reward`; those of
    comparisons are relative to the group, see `combined`.
    """
    rule = rule_of(constitution, config)
    # Clipping corrected margins like raw ones would bias them again.
    clip = reward_clip(config.margin_clip, config.select)
    if any(label.task == "pairwise" for label in labels):
        margins = pair_margins(labels, principles=principles, rule=rule, clip=clip)
        return combined(margins, num_rollouts=num_rollouts, method=config.pairwise, ridge=config.pairwise_ridge)
    return _of_single_answers(labels, num_rollouts=num_rollouts, principles=principles, rule=rule, clip=clip)


def preference_margin(feedback: Feedback, constitution: Constitution, config: FeedbackConfig) -> float | None:
    """Of the first of two answers over the second, over all principles that were asked, nats; None where a verdict is
    missing."""
    asked = {label.principle_id for label in feedback.labels}
    margins = pair_margins(
        feedback.labels,
        principles=[principle for principle in constitution.principles if principle.id in asked],
        rule=rule_of(constitution, config),
        clip=config.margin_clip,
    )
    return margins.get((0, 1))


def rule_of(constitution: Constitution, config: FeedbackConfig) -> Aggregation:
    """The rule between principles: from the constitution, unless the configuration overrides it.

    Raises InputError for a rule that is not linear over margins that are right only on average.
    """
    rule = constitution.aggregation
    if config.aggregation:
        rule = rule.model_copy(update={"method": config.aggregation})
    if config.select.proxy and rule.method in ("min", "lexicographic"):
        raise InputError(
            f"feedback.select.proxy with the aggregation {rule.method!r}, expected 'mean' or 'weighted': corrected "
            "margins are right on average and far off one by one, so a rule that picks one of them gives wrong "
            "rewards; set feedback.aggregation = 'weighted', or remove feedback.select.proxy"
        )
    return rule


def _of_single_answers(
    labels: Sequence[Label], *, num_rollouts: int, principles: Sequence[Principle], rule: Aggregation, clip: float
) -> tuple[float | None, ...]:
    margins: dict[tuple[int, str], list[float | None]] = defaultdict(list)
    for label in labels:
        margin = None if label.margin is None else max(-clip, min(clip, label.margin))
        margins[label.rollouts[0], label.principle_id].append(margin)

    def reward(rollout: int) -> float | None:
        found = []
        for principle in principles:
            mean = _mean(margins[rollout, principle.id])
            if mean is None:
                return None
            found.append(Weighed(mean, principle.weight, principle.severity == "hard"))
        return rule.reward(found, clip=clip) if found else None

    return tuple(reward(rollout) for rollout in range(num_rollouts))


def _mean(margins: Sequence[float | None]) -> float | None:
    """Mean over one principle's questions about one rollout: they differ, so none may be missing."""
    valid = [margin for margin in margins if margin is not None]
    if not valid or len(valid) < len(margins):
        return None
    return sum(valid) / len(valid)
