"""Uncertainty of a measured figure: Wilson, bootstrap over pairs or over prompts, exact McNemar.

A figure about N pairs is a `Statistic`: a function of the weights of the pairs. Its value, its bootstrap interval and
the interval of its difference to another judge's figure all come from that one function.

    kappa(judge, gold).interval(rng)
    (kappa(one, gold) - kappa(other, gold)).interval(rng)      # the same resamples for both: paired
"""

# N pairs (or units, or prompts), R resamples, G clusters

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.errors import InputError

Floats = NDArray[np.float64]
MOST_CELLS = 2_000_000
"""Most weights computed at once when resampling: 16 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its interval. Interval(value=0.8, low=0.78, high=0.82, pairs=1537)"""

    value: float
    low: float
    high: float
    pairs: int
    """Number of pairs behind it."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure about `num` pairs, as a function of their weights.

    of_weights: weights_RN -> values_R, NaN where the figure is undefined.
    mirrored: it is a mean of absolute values, which noise always increases, in resamples twice; so their lower end is
    not used, and the interval reaches as far below the value as above it.
    bounds: the possible range of the figure.
    """

    num: int
    of_weights: Callable[[Floats], Floats]
    mirrored: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def value(self, weights_N: ArrayLike | None = None) -> float:
        """The figure itself."""
        return float(self.of_weights(checked_weights(weights_N, self.num)[None])[0])

    def interval(
        self,
        rng: np.random.Generator,
        *,
        weights_N: ArrayLike | None = None,
        clusters_N: ArrayLike | None = None,
        resamples: int = 1000,
        level: float = 0.95,
    ) -> Interval:
        """Bootstrap interval.

        weights_N: inverse selection probability of each pair. clusters_N: units drawn together, such as the prompt of
        each pair; none: every pair separately. Resamples in which the figure is undefined are omitted.
        """
        weights = checked_weights(weights_N, self.num)
        value = float(self.of_weights(weights[None])[0])
        clusters = (
            np.arange(self.num) if clusters_N is None else np.unique(np.asarray(clusters_N), return_inverse=True)[1]
        )
        if len(clusters) != self.num:
            raise InputError(f"got {len(clusters)} clusters for {self.num} pairs, expected one each")
        num_clusters, rows = int(clusters.max()) + 1, max(1, MOST_CELLS // self.num)
        found = []
        for start in range(0, resamples, rows):
            counts_RG = _counts(rng, min(rows, resamples - start), num_clusters)
            found.append(self.of_weights(counts_RG[:, clusters] * weights))
        values = np.concatenate(found)
        values = values[np.isfinite(values)]
        if not len(values) or not math.isfinite(value):
            return Interval(value=value, low=math.nan, high=math.nan, pairs=self.num)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        if self.mirrored:
            low = 2 * value - high
        low, high = np.clip([low, high], *self.bounds)
        return Interval(value=value, low=float(low), high=float(high), pairs=self.num)

    def __sub__(self, other: Statistic) -> Statistic:
        """The difference of this figure to another one of the same pairs."""
        if self.num != other.num:
            raise InputError(f"got figures about {self.num} and {other.num} pairs, expected the same pairs")
        return Statistic(self.num, lambda weights_RN: self.of_weights(weights_RN) - other.of_weights(weights_RN))


def mean(values_N: ArrayLike) -> Statistic:
    """The weighted mean, as a statistic."""
    values = rows(values=values_N)["values"]
    return Statistic(len(values), lambda weights_RN: ratio(weights_RN @ values, weights_RN.sum(1)))


def rows(**named_N: ArrayLike) -> dict[str, Floats]:
    """The columns as float64, one number per pair. Raises InputError for numbers that are not finite.

    An invalid verdict has no margin, so it must be removed before measuring.
    """
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in named_N.items()}
    sizes = {name: column.shape for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or any(len(size) != 1 or not size[0] for size in sizes.values()):
        raise InputError(f"got {sizes}, expected one number per pair in each and at least one pair")
    for name, column in columns.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise InputError(
                f"{name}: got {column[bad[0]]} at pair {bad[0]} ({len(bad)} in all), expected finite numbers; leave "
                "out invalid verdicts"
            )
    return columns


def wilson(share: float, pairs: float, *, level: float = 0.95) -> Interval:
    """Interval of a share of `pairs` independent pairs (Wilson 1927). It stays within 0 and 1.

    For weighted pairs pass `effective_pairs(weights)`.
    """
    if not (pairs > 0 and 0 <= share <= 1):
        raise InputError(f"got a share of {share} of {pairs} pairs, expected a share from 0 to 1 of at least one pair")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * pairs)) / (1 + z * z / pairs)
    half = z * math.sqrt(share * (1 - share) / pairs + (z / (2 * pairs)) ** 2) / (1 + z * z / pairs)
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(value=share, low=low, high=high, pairs=round(pairs))


def effective_pairs(weights_N: ArrayLike) -> float:
    """Number of equally weighted pairs with the same information: (sum w)^2 / sum w^2 (Kish)."""
    weights = np.asarray(weights_N, dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Whether two judges differ on the same pairs. `p`: probability of an imbalance at least this large by chance."""

    only_first: int
    """Pairs that only the first judge got right."""
    only_second: int
    p: float


def mcnemar(first_right_N: ArrayLike, second_right_N: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test: without a difference, a fair coin decides which judge alone is right."""
    from scipy.special import bdtr

    columns = rows(first=first_right_N, second=second_right_N)
    first, second = columns["first"] > 0.5, columns["second"] > 0.5
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = min(1.0, 2 * float(bdtr(min(one, other), one + other, 0.5))) if one + other else 1.0
    return McNemar(only_first=one, only_second=other, p=p)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is zero."""
    quotient: Floats = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), math.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def checked_weights(weights_N: ArrayLike | None, num: int) -> Floats:
    """Weights of `num` pairs, all 1 by default. Raises InputError for a negative weight or if none is above 0."""
    if weights_N is None:
        return np.ones(num)
    weights = rows(weights=weights_N)["weights"]
    if len(weights) != num or weights.min() < 0 or not weights.sum() > 0:
        raise InputError(
            f"got {len(weights)} weights from {weights.min()} to {weights.max()}, expected {num} of at least 0, one "
            "above it"
        )
    return weights


def _counts(rng: np.random.Generator, resamples: int, num: int) -> Floats:
    """Counts of `num` draws with replacement from `num`, per resample. [R, num]"""
    drawn = rng.integers(0, num, (resamples, num)) + np.arange(resamples)[:, None] * num
    return np.bincount(drawn.ravel(), minlength=resamples * num).reshape(resamples, num).astype(np.float64)
