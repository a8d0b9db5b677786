"""Estimates about all items from labelled ones that were selected with unequal probabilities.

Three corrections for the selection: a weighted mean of independently drawn items (Hajek), a weighted mean of items
drawn successively from a pool (LURE), and a reward for every item, labelled or not (doubly robust). Training a reward
model may skip the correction; measurement, calibration and rewards must not.
"""

# N items, M labelled items, S strata

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.errors import InputError
from solon.feedback.quality.intervals import Floats, Interval, effective_pairs, rows

WEIGHT_CLIP = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HajekEstimate:
    """Mean and spread of all items, from the labelled ones."""

    mean: Interval
    std: float
    """Standard deviation of the items' values; used with `mean` to whiten a batch."""
    n_eff: float
    """Number of equally weighted labels with the same information."""
    clipped: int
    """Labels with a clipped weight; each biases the estimate slightly."""


def hajek(
    values_M: ArrayLike, propensities_M: ArrayLike, *, weight_clip: float = WEIGHT_CLIP, level: float = 0.95
) -> HajekEstimate:
    """sum(y / pi) / sum(1 / pi) over the labelled items (Hajek 1971).

    values_M: valid labels; propensities_M: probability with which each was labelled. The interval is for the population
    mean, by linearisation, widened by n_eff / (n_eff - 1) because the mean is estimated from the same labels. With one
    label it is infinite.
    """
    columns = rows(values=values_M, propensities=propensities_M)
    values, propensities = columns["values"], _probabilities(columns["propensities"])
    weights = np.minimum(1 / propensities, weight_clip)
    shares, n_eff = weights / weights.sum(), effective_pairs(weights)
    mean = float(shares @ values)
    half = std = math.inf
    if n_eff > 1:
        unbiased = n_eff / (n_eff - 1)
        std = math.sqrt(unbiased * float(shares @ (values - mean) ** 2))
        z = NormalDist().inv_cdf((1 + level) / 2)
        half = z * math.sqrt(unbiased * float(shares**2 @ (values - mean) ** 2))
    return HajekEstimate(
        mean=Interval(value=mean, low=mean - half, high=mean + half, pairs=len(values)),
        std=std,
        n_eff=n_eff,
        clipped=int((1 / propensities > weight_clip).sum()),
    )


def lure_weights(chances_M: ArrayLike, pool: int) -> Floats:
    """Weights of M items drawn successively without replacement from a pool of N; the mean of weight times value is
    unbiased for the mean of the pool (Farquhar, Gal and Rainforth, ICLR 2021, eq. 8).

        v_m = 1 + (N - M) / (N - m) * (1 / ((N - m + 1) q_m) - 1)

    chances_M: q_m, the probability with which the m-th item was drawn among the N - m + 1 that were left.
    """
    chances = _probabilities(rows(chances=chances_M)["chances"])
    number = len(chances)
    if number > pool:
        raise InputError(f"got {number} items drawn from a pool of {pool}, expected no more than it holds")
    if number == pool:
        return np.ones(number)  # the whole pool: nothing was selected
    drawn = np.arange(1, number + 1)
    return np.asarray(1 + (pool - number) / (pool - drawn) * (1 / ((pool - drawn + 1) * chances) - 1))


def lure(values_M: ArrayLike, chances_M: ArrayLike, pool: int) -> float:
    """Mean of a pool from M of its values, in the order of their draws."""
    columns = rows(values=values_M, chances=chances_M)
    return float((lure_weights(columns["chances"], pool) * columns["values"]).mean())


@dataclass(frozen=True, slots=True)
class Control:
    """A proxy's prediction of a label: offset + slope * proxy, nats. Control() uses the proxy unchanged.

    Control(0.0, 0.0) ignores it, which leaves inverse propensity weighting.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, proxies_N: ArrayLike) -> Floats:
        return np.asarray(self.offset + self.slope * np.asarray(proxies_N, dtype=np.float64))


def fit_control(
    proxies_M: ArrayLike, labels_M: ArrayLike, propensities_M: ArrayLike, *, weights_M: ArrayLike | None = None
) -> Control:
    """The control with the least variance of doubly robust rewards.

    Least squares with weights kappa = (1 - pi) / pi, the variance that an item's residual is multiplied by:
    slope = sum(kappa m y) / sum(kappa m^2) with m and y centred under kappa. propensities_M: selection probability
    of each item under the policy; the items need not have been selected by it. weights_M: inverse probability with
    which the given items were labelled; none: equal, as for audited items. Use other items than those to be corrected,
    or the rewards are slightly biased.
    """
    columns = rows(proxies=proxies_M, labels=labels_M, propensities=propensities_M)
    proxies, labels = columns["proxies"], columns["labels"]
    propensities = _probabilities(columns["propensities"])
    kappa = (1 - propensities) / propensities
    if weights_M is not None:
        kappa = kappa * rows(proxies=proxies, weights=weights_M)["weights"]
    if kappa.sum() <= 0:
        return Control()  # everything is labelled: no residual is used
    kappa = kappa / kappa.sum()
    m, y = proxies - kappa @ proxies, labels - kappa @ labels
    spread = float(kappa @ m**2)
    slope = float(kappa @ (m * y)) / spread if spread > 0 else 0.0
    return Control(slope=slope, offset=float(kappa @ labels - slope * (kappa @ proxies)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedRewards:
    """A reward for every item, labelled or not."""

    rewards_N: NDArray[np.float64]
    clipped: int
    """Labelled items with a clipped correction; each biases the rewards slightly."""


def doubly_robust(
    proxies_N: ArrayLike,
    labels_N: ArrayLike,
    propensities_N: ArrayLike,
    control: Control | None = None,
    *,
    clip: float = math.inf,
) -> CorrectedRewards:
    """r = f + (I / pi)(y - f), f = offset + slope * proxy: the proxy everywhere, corrected where there is a label.

    labels_N: nats; NaN where an item was not selected or its label is invalid; for the latter use the propensities of
    `valid_propensities`. The mean of each reward over the draws is the label, whatever the proxy, as long as control
    and proxy do not depend on the draws; a policy gradient is linear in the reward, so it is unbiased too if its
    baseline does not depend on the selection. Whitening is not linear: take mean and deviation from `hajek` over the
    labelled items, not from these rewards, whose spread includes that of the corrections.

    clip: largest |y - f| / pi, nats. If it applies, the mean is no longer the label; if f and y are bounded and
    propensities have a floor, the correction is bounded too, and no clip is needed.
    """
    proxies = rows(proxies=proxies_N)["proxies"]
    labels, propensities = np.asarray(labels_N, np.float64), np.asarray(propensities_N, np.float64)
    if not proxies.shape == labels.shape == propensities.shape or np.isinf(labels).any():
        raise InputError(
            f"got labels of shape {labels.shape} and propensities of shape {propensities.shape} for {len(proxies)} "
            "items, expected one each, and labels finite or NaN"
        )
    seen = np.isfinite(labels)
    rewards = (control or Control())(proxies)
    corrections = (labels[seen] - rewards[seen]) / _probabilities(propensities[seen])
    rewards[seen] += np.clip(corrections, -clip, clip)
    return CorrectedRewards(rewards_N=rewards, clipped=int((np.abs(corrections) > clip).sum()))


def valid_propensities(
    propensities_N: ArrayLike, selected_N: ArrayLike, valid_N: ArrayLike, strata_N: Sequence[Hashable]
) -> Floats:
    """pi' = pi * P(valid): probability that an item gets a usable label.

    An invalid label is the same as none, so items on which judges fail more often must get more weight. P(valid) is the
    share of valid labels among the selected items of a stratum (task, principle, language: anything that makes judges
    fail); within a stratum, failure is assumed to be independent of the label. A stratum without selected items keeps
    pi; if every label of a stratum is invalid, pi' is 0 and the proxy alone decides.
    """
    propensities = _probabilities(rows(propensities=propensities_N)["propensities"])
    selected, valid = np.asarray(selected_N, dtype=bool), np.asarray(valid_N, dtype=bool)
    if not len(propensities) == len(selected) == len(valid) == len(strata_N):
        raise InputError(
            f"got {len(selected)} selected, {len(valid)} valid and {len(strata_N)} strata for {len(propensities)} "
            "items, expected one each"
        )
    numbers: dict[Hashable, int] = {}
    stratum_N = np.array([numbers.setdefault(stratum, len(numbers)) for stratum in strata_N])
    asked_S = np.bincount(stratum_N[selected], minlength=len(numbers))
    answered_S = np.bincount(stratum_N[selected & valid], minlength=len(numbers))
    share_S = np.where(asked_S > 0, answered_S / np.maximum(asked_S, 1), 1.0)
    return np.asarray(propensities * share_S[stratum_N])


def _probabilities(values: Floats) -> Floats:
    if len(values) and not (values.min() > 0 and values.max() <= 1):
        raise InputError(f"got propensities from {values.min()} to {values.max()}, expected above 0 and at most 1")
    return values
