"""Whether a judge favours an answer or its position, from both orders of a pair. N pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from solon.feedback.quality.intervals import Interval, mean, rows, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionQuality:
    """The influence of an answer's position. The three shares and undecided pairs add up to 1."""

    consistent: Interval
    """Share of pairs on which both orders favour the same answer."""
    first_place: Interval
    """Share on which both orders favour the answer shown first (primacy)."""
    last_place: Interval
    """Share on which both orders favour the answer shown last (recency)."""
    offset: Interval
    """Mean position offset, nats; above 0 the first position is favoured."""


def position_quality(
    raw_margins_N: ArrayLike, offsets_N: ArrayLike, *, rng: np.random.Generator, clusters_N: ArrayLike | None = None
) -> PositionQuality:
    """From the raw margins and position offsets of pairs asked in both orders.

    One order gives margin + offset for the first answer, the other margin - offset: they agree where the margin is the
    larger of the two.
    """
    columns = rows(raw_margins=raw_margins_N, offsets=offsets_N)
    strength, offsets = np.abs(columns["raw_margins"]), columns["offsets"]
    num = len(offsets)

    def share(found: int) -> Interval:
        return wilson(found / num, num)

    return PositionQuality(
        consistent=share(int((strength > np.abs(offsets)).sum())),
        first_place=share(int((offsets > strength).sum())),
        last_place=share(int((-offsets > strength).sum())),
        offset=mean(offsets).interval(rng, clusters_N=clusters_N),
    )
