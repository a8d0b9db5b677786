"""Figures of a policy and its differences from another one on the same prompts.

P prompts. Several answers to a prompt are averaged first: the prompt is the unit of every interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def mean(values_P: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean over prompts with its bootstrap interval; prompts without a value are left out."""
    found_P = _known(values_P)
    return _interval(found_P, seed)


def change(before_P: ArrayLike, after_P: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean difference over prompts that have both values, with its paired bootstrap interval."""
    return _interval(_known(np.asarray(after_P, float) - np.asarray(before_P, float)), seed)


def win_rate(margins_P: Sequence[float | None], *, tie: float, seed: int = 0) -> WinRate:
    """margins_P: log-odds that the answer of the policy is the better one; None: no valid verdict, left out. tie: nats
    within which neither is better."""
    known = [margin for margin in margins_P if margin is not None]
    scores_P = np.array([0.5 if margin == 0 or abs(margin) < tie else float(margin > 0) for margin in known])
    wins, losses = int((scores_P == 1).sum()), int((scores_P == 0).sum())
    return WinRate(wins=wins, ties=len(known) - wins - losses, losses=losses, rate=_interval(scores_P, seed))


def _known(values_P: ArrayLike) -> NDArray[np.float64]:
    array_P: NDArray[np.float64] = np.asarray(values_P, float)
    known_P: NDArray[np.float64] = array_P[~np.isnan(array_P)]
    return known_P


def _interval(values_P: NDArray[np.float64], seed: int) -> Interval:
    """Percentiles of means of resampled prompts."""
    count = len(values_P)
    if not count:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), pairs=0)
    rng = np.random.default_rng(seed)
    means = [values_P[rng.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(values_P.mean()), low=float(low), high=float(high), pairs=count)
