"""Figures of a policy and its differences from another one on the same prompts.

P prompts. Several answers to a prompt are averaged first: the prompt is the unit of every interval, or a group of
prompts that were made from one (`clusters_P`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.feedback.quality.intervals import Interval

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often answers of one policy are preferred to those of another; a tie counts half."""

    wins: int
    ties: int
    losses: int
    rate: Interval


def by_principle(scores_P: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Scores of prompts by principle, NaN where a principle does not apply, [P] each."""
    names = sorted({name for scores in scores_P for name in scores})
    return {name: np.array([scores.get(name, np.nan) for scores in scores_P]) for name in names}


def mean(values_P: ArrayLike, clusters_P: Sequence[str] | None = None, *, seed: int = 0) -> Interval:
    """The mean over prompts with its bootstrap interval; prompts without a value are left out. Where all are 0 or all
    are 1, resampling would find no uncertainty: then the interval is the exact one of a share."""
    found = _interval(np.asarray(values_P, float), clusters_P, seed)
    if found.pairs and found.low == found.high and found.value in (0.0, 1.0):
        rest = ((1 - LEVEL) / 2) ** (1 / found.pairs)
        return replace(found, high=1 - rest) if found.value == 0.0 else replace(found, low=rest)
    return found


def change(
    before_P: ArrayLike, after_P: ArrayLike, clusters_P: Sequence[str] | None = None, *, seed: int = 0
) -> Interval:
    """The mean difference over prompts that have both values, with its paired bootstrap interval."""
    return _interval(np.asarray(after_P, float) - np.asarray(before_P, float), clusters_P, seed)


def win_rate(margins_P: Sequence[float | None], *, tie: float, seed: int = 0) -> WinRate:
    """margins_P: log-odds that the answer of the policy is the better one; None: no valid verdict, left out. tie: nats
    within which neither is better."""
    known = [margin for margin in margins_P if margin is not None]
    scores_P = np.array([0.5 if margin == 0 or abs(margin) < tie else float(margin > 0) for margin in known])
    wins, losses = int((scores_P == 1).sum()), int((scores_P == 0).sum())
    return WinRate(wins=wins, ties=len(known) - wins - losses, losses=losses, rate=_interval(scores_P, None, seed))


def _interval(values_P: NDArray[np.float64], clusters_P: Sequence[str] | None, seed: int) -> Interval:
    """Percentiles of means of resampled prompts or clusters of prompts; NaN is left out. `pairs`: of what was
    resampled."""
    known_P = ~np.isnan(values_P)
    found_P = values_P[known_P]
    if not len(found_P):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), pairs=0)
    own = np.arange(len(found_P)) if clusters_P is None else np.asarray(clusters_P)[known_P]
    _, place_P = np.unique(own, return_inverse=True)
    sum_C, size_C = np.bincount(place_P, weights=found_P), np.bincount(place_P)
    rng, count = np.random.default_rng(seed), len(sum_C)
    drawn = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    means = [sum_C[places].sum() / size_C[places].sum() for places in drawn]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(found_P.mean()), low=float(low), high=float(high), pairs=count)
