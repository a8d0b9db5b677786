"""From the labels of a group to one reward per rollout, or none.

A rollout with an invalid label has no reward: neither a zero nor a mean over the principles that happened to
work, for both would be wrong labels that look like right ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from solon.feedback.config import FeedbackConfig
from solon.records import Label


def rewards(
    labels: Sequence[Label], *, num_rollouts: int, weights: Mapping[str, float], config: FeedbackConfig
) -> tuple[float | None, ...]:
    """Rewards of G rollouts in nats, each in [-margin_clip, margin_clip]; None where a label is missing.

    weights: principle id -> weight, for the principles that were asked about.
    """
    margins: dict[tuple[int, str], list[float | None]] = defaultdict(list)
    for label in labels:
        for place, rollout in enumerate(label.rollouts):
            sign = 1.0 if place == 0 else -1.0
            margins[rollout, label.principle_id].append(
                None if label.margin is None else sign * _clip(label.margin, config.margin_clip)
            )
    return tuple(_reward([margins[i, p] for p in weights], [*weights.values()], config) for i in range(num_rollouts))


def _reward(
    by_principle: Sequence[Sequence[float | None]], weights: Sequence[float], config: FeedbackConfig
) -> float | None:
    means = []
    for margins in by_principle:
        valid = [m for m in margins if m is not None]
        # A pairwise principle is asked several times: one valid comparison is enough for a number.
        if not valid:
            return None
        means.append(sum(valid) / len(valid))
    if not means:
        return None
    if config.aggregation == "min":
        return min(means)
    return sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
