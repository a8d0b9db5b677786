"""One-sided bounds of a mean over prompts, for tests of non-inferiority.

The unit is the prompt: pairs of one prompt are averaged first. The bound is the bias-corrected and accelerated
bootstrap's (Efron 1987), but never below Clopper and Pearson's for values that are flips: where nothing flipped,
resampling would find no uncertainty. C prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

Floats = NDArray[np.float64]
RESAMPLES = 10_000
MOST_CELLS = 4_000_000
FEW_VALUES = 64
"""Up to so many different values are resampled by their counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A mean with its lower and upper one-sided bounds, each at level 1 - alpha."""

    value: float
    low: float
    high: float
    prompts: int


def by_prompt(values_P: ArrayLike, prompts_P: Sequence[str]) -> Floats:
    """The mean of each prompt, in the order of their first pairs. [C]"""
    values = np.asarray(values_P, float)
    _, first, place_P = np.unique(np.asarray(prompts_P), return_index=True, return_inverse=True)
    means = np.bincount(place_P, weights=values) / np.bincount(place_P)
    return means[np.argsort(first)]


def bounds(values_C: ArrayLike, alpha: float, *, are_flips: bool = False, seed: int = 0) -> Bounds:
    """Bounds of the mean. are_flips: values are from -1 to 1, most of them 0."""
    values = np.asarray(values_C, float)
    mean, count = float(values.mean()), len(values)
    low, high = _bca(values, alpha, seed)
    if are_flips:
        up, down = float(np.maximum(values, 0).sum()), float(np.maximum(-values, 0).sum())
        high = max(high, _most(up, count, alpha) - down / count)
        low = min(low, up / count - _most(down, count, alpha))
    return Bounds(value=mean, low=low, high=high, prompts=count)


def _most(events: float, count: int, alpha: float) -> float:
    """Clopper and Pearson's upper bound of a share."""
    return 1.0 if events >= count else float(beta.ppf(1 - alpha, events + 1, count - events))


def _bca(values_C: Floats, alpha: float, seed: int) -> tuple[float, float]:
    count, mean = len(values_C), values_C.mean()
    deviation = values_C - mean
    spread = float((deviation**2).sum())
    if count < 2 or spread == 0:
        return float(mean), float(mean)
    # The quantile at alpha has some twenty resamples beyond it.
    resamples = max(RESAMPLES, math.ceil(20 / alpha))
    means_R = _resampled(values_C, np.random.default_rng(seed), resamples)
    # Values that are equal count half: means of flips are on a lattice.
    below = ((means_R < mean).mean() + (means_R <= mean).mean()) / 2
    bias = norm.ppf(np.clip(below, 1e-6, 1 - 1e-6))
    # The jackknife's deviations of a mean are -deviation / (C - 1).
    acceleration = float((deviation**3).sum()) / (6 * spread**1.5)

    def level(tail: float) -> float:
        shifted = bias + norm.ppf(tail)
        return float(norm.cdf(bias + shifted / (1 - acceleration * shifted)))

    low, high = np.quantile(means_R, [level(alpha), level(1 - alpha)])
    return float(low), float(high)


def _resampled(values_C: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    count = len(values_C)
    different, times = np.unique(values_C, return_counts=True)
    if len(different) <= FEW_VALUES:
        drawn = rng.multinomial(count, times / count, size=resamples)
        return np.asarray(drawn @ different / count)
    rows = max(1, MOST_CELLS // count)
    return np.concatenate(
        [
            values_C[rng.integers(0, count, (min(rows, resamples - start), count))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
