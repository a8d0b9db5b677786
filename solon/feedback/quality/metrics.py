"""Quality of a judge's margins: is its confidence calibrated, and is it consistent?

Calibration is measured on pairs with a target: 1 when the first answer is better (or the answer is yes), 0 when not,
anything between for a soft gold label. A margin m claims the probability sigmoid(m).
"""

# N pairs, R resamples, D different probabilities, B bins, P prompts, K answers of a prompt

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.errors import InputError
from solon.feedback.quality.intervals import (
    Floats,
    Interval,
    Statistic,
    checked_weights,
    effective_pairs,
    mean,
    ratio,
    rows,
    wilson,
)

BINS = 15


def sigmoid(margins_N: ArrayLike) -> Floats:
    """Probabilities of margins in nats."""
    margins = np.asarray(margins_N, dtype=np.float64)
    small = np.exp(-np.abs(margins))  # never overflows
    probabilities: Floats = np.where(margins >= 0, 1.0, small) / (1.0 + small)
    return probabilities


def nll(margins_N: ArrayLike, targets_N: ArrayLike) -> Statistic:
    """Mean negative log-likelihood of the targets, nats per pair. A coin has ln 2."""
    margins, targets = _pairs(margins_N, targets_N)
    return mean(np.logaddexp(0.0, margins) - targets * margins)


def brier(margins_N: ArrayLike, targets_N: ArrayLike) -> Statistic:
    """Mean squared distance of probability and target. A coin has 0.25."""
    margins, targets = _pairs(margins_N, targets_N)
    return mean((sigmoid(margins) - targets) ** 2)


def ece(margins_N: ArrayLike, targets_N: ArrayLike, *, folded: bool, bins: int = BINS) -> Statistic:
    """Expected calibration error: mean |probability - target| over bins of equal mass.

    folded: True for pairs. The order of two answers is arbitrary, so each pair is seen from the side of the answer that
    the judge favours; unfolded, the figure would depend on the order of gold (all `chosen` first, for example). False
    for yes/no questions. Noise always increases it: use the upper end of its interval. Whether there is any error is
    shown by `ece_floor` and `debiased_error`, not by the lower end.
    """
    binned = _Binned(margins_N, targets_N, folded=folded, bins=bins)

    def of_weights(weights_RN: Floats) -> Floats:
        mass_RB, claimed_RB, true_RB = binned.sums(weights_RN)
        return ratio(np.abs(claimed_RB - true_RB).sum(1), mass_RB.sum(1))

    return Statistic(binned.num, of_weights, mirrored=True, bounds=(0.0, 1.0))


def ece_floor(margins_N: ArrayLike, *, folded: bool, weights_N: ArrayLike | None = None, bins: int = BINS) -> float:
    """Average of `ece` if these probabilities are exactly right and gold is hard: pure noise."""
    margins = rows(margins=margins_N)["margins"]
    binned = _Binned(margins, sigmoid(margins), folded=folded, bins=bins)
    weights = checked_weights(weights_N, binned.num)
    variance_N = binned.claimed * (1 - binned.claimed)
    bin_N = binned.bins_of(weights)
    noise_B = np.sqrt(_sums(bin_N, weights[binned.order] ** 2 * variance_N, bins))
    return float(math.sqrt(2 / math.pi) * noise_B.sum() / weights.sum())


def debiased_error(
    margins_N: ArrayLike,
    targets_N: ArrayLike,
    *,
    folded: bool,
    weights_N: ArrayLike | None = None,
    bins: int = BINS,
) -> float:
    """Root mean square calibration error of the bins, corrected for noise (Kumar et al., arXiv:1909.10155).

    Its square has no bias from noise (and is cut off at 0). Without noise it is at least the `ece` of the same bins, so
    a small value here guarantees a small error there.
    """
    binned = _Binned(margins_N, targets_N, folded=folded, bins=bins)
    weights = checked_weights(weights_N, binned.num)
    bin_N, weights = binned.bins_of(weights), weights[binned.order]
    gap_N = binned.true - binned.claimed
    mass_B, squares_B = _sums(bin_N, weights, bins), _sums(bin_N, weights**2, bins)
    gap_B = ratio(_sums(bin_N, weights * gap_N, bins), mass_B)
    pairs_B = ratio(mass_B**2, squares_B)
    spread_B = ratio(_sums(bin_N, weights**2 * (gap_N - gap_B[bin_N]) ** 2, bins), mass_B**2)
    # A bin of one pair shows no noise of its own, so it is not used.
    known = pairs_B > 1 + 1e-9
    if not known.any():
        raise InputError(f"got {binned.num} pairs for {bins} bins, expected two in a bin at least; provide more pairs")
    noise_B = spread_B[known] * pairs_B[known] / (pairs_B[known] - 1)
    square = float(mass_B[known] @ (gap_B[known] ** 2 - noise_B) / mass_B[known].sum())
    return math.sqrt(max(0.0, square))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs of similar probability: the claimed and the observed frequency."""

    claimed: float
    """Mean probability."""
    true: Interval
    """Mean target, with its Wilson interval."""
    mass: float
    """Share of all pairs."""


def reliability(
    margins_N: ArrayLike,
    targets_N: ArrayLike,
    *,
    folded: bool,
    weights_N: ArrayLike | None = None,
    clusters_N: ArrayLike | None = None,
    bins: int = BINS,
) -> tuple[Bin, ...]:
    """The bins behind `ece`, lowest probability first; empty ones are omitted. clusters_N: pairs of one cluster, such
    as a prompt, count as one pair in the interval of a bin."""
    binned = _Binned(margins_N, targets_N, folded=folded, bins=bins)
    weights = checked_weights(weights_N, binned.num)
    bin_N, weights = binned.bins_of(weights), weights[binned.order]
    found = []
    for one in np.unique(bin_N):
        inside = weights[bin_N == one]
        if not inside.sum() > 0:
            continue
        claimed, true = (float(inside @ side[bin_N == one] / inside.sum()) for side in (binned.claimed, binned.true))
        if clusters_N is not None:
            inside = _by_cluster(inside, np.asarray(clusters_N)[binned.order][bin_N == one])
        found.append(
            Bin(
                claimed=claimed,
                true=wilson(min(1.0, true), effective_pairs(inside)),
                mass=float(inside.sum() / weights.sum()),
            )
        )
    return tuple(found)


def _by_cluster(weights_N: Floats, clusters_N: NDArray[Any]) -> Floats:
    """The weight of each cluster."""
    place_N = np.unique(clusters_N, return_inverse=True)[1]
    return np.bincount(place_N, weights=weights_N).astype(np.float64)


class _Binned:
    """Pairs sorted by probability, and their bins under any weights.

    Pairs of equal probability are never divided between bins: their order is arbitrary, and a file sorted by target
    would look miscalibrated.
    """

    def __init__(self, margins_N: ArrayLike, targets_N: ArrayLike, *, folded: bool, bins: int) -> None:
        margins, targets = _pairs(margins_N, targets_N)
        if folded:
            favours_second = margins < 0
            margins, targets = np.abs(margins), np.where(favours_second, 1 - targets, targets)
            # Neither answer is favoured, so the pair is seen from neither side.
            targets = np.where(margins == 0, 0.5, targets)
        self.num = len(margins)
        self.order = np.argsort(margins, kind="stable")
        self.claimed, self.true = sigmoid(margins[self.order]), targets[self.order]
        self._starts_D = np.flatnonzero(np.diff(margins[self.order], prepend=-np.inf) > 0)
        self._bins = bins

    def sums(self, weights_RN: Floats) -> tuple[Floats, Floats, Floats]:
        """Mass, summed probability and summed target of each bin. Each [R, B]."""
        weights_RN = weights_RN[:, self.order]
        mass_RD = np.add.reduceat(weights_RN, self._starts_D, axis=1)
        claimed_RD = np.add.reduceat(weights_RN * self.claimed, self._starts_D, axis=1)
        true_RD = np.add.reduceat(weights_RN * self.true, self._starts_D, axis=1)
        num_rows = len(weights_RN)
        flat = (self._bin_of(mass_RD) + np.arange(num_rows)[:, None] * self._bins).ravel()

        def by_bin(values_RD: Floats) -> Floats:
            return _sums(flat, values_RD.ravel(), num_rows * self._bins).reshape(num_rows, self._bins)

        return by_bin(mass_RD), by_bin(claimed_RD), by_bin(true_RD)

    def bins_of(self, weights_N: Floats) -> NDArray[np.intp]:
        """The bin of each pair, in sorted order."""
        mass_D = np.add.reduceat(weights_N[self.order], self._starts_D)
        sizes_D = np.diff(self._starts_D, append=self.num)
        return np.repeat(self._bin_of(mass_D[None])[0], sizes_D)

    def _bin_of(self, mass_RD: Floats) -> NDArray[np.intp]:
        middle_RD = mass_RD.cumsum(1) - mass_RD / 2
        total_R1 = mass_RD.sum(1, keepdims=True)
        bin_RD: NDArray[np.intp] = np.minimum(middle_RD * self._bins / total_R1, self._bins - 1).astype(np.intp)
        return bin_RD


def _sums(bin_N: NDArray[np.intp], values_N: Floats, bins: int) -> Floats:
    return np.bincount(bin_N, values_N, bins).astype(np.float64)


def _pairs(margins_N: ArrayLike, targets_N: ArrayLike) -> tuple[Floats, Floats]:
    columns = rows(margins=margins_N, targets=targets_N)
    targets = columns["targets"]
    if targets.min() < 0 or targets.max() > 1:
        raise InputError(f"targets: got {targets.min()} to {targets.max()}, expected probabilities from 0 to 1")
    return columns["margins"], targets
