"""How far two raters say the same: agreement, kappa, alpha, flips; and a share corrected for a rater's mistakes.

A rater's sayings are codes: 1 for the first answer (or yes), -1 for the second (or no), 0 for a tie. What is
returned is a `Statistic`: ask it for its value, its interval, or its difference to another one.
"""

# N pairs, R resamples, K raters, U units, C codes

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.errors import InputError
from solon.feedback.quality.intervals import (
    Floats,
    Interval,
    Statistic,
    checked_weights,
    effective_pairs,
    ratio,
    rows,
    wilson,
)

Codes = NDArray[np.int8]


def codes(margins_N: ArrayLike, *, tie_band: float = 0.0) -> Codes:
    """1, -1, or 0 where the margin is within the tie band.

    >>> codes([2.0, -0.05, -3.0], tie_band=0.1).tolist()
    [1, 0, -1]
    """
    margins = rows(margins=margins_N)["margins"]
    return np.where(np.abs(margins) < tie_band, 0, np.sign(margins)).astype(np.int8)


def agreement(codes_N: ArrayLike, gold_N: ArrayLike, *, weights_N: ArrayLike | None = None) -> Interval:
    """Share of pairs with the same code, with its Wilson interval. A tie agrees with a tie only.

    A share of 80 % is known to 2 points either way from 1,537 pairs.
    """
    columns = rows(codes=codes_N, gold=gold_N)
    same = columns["codes"] == columns["gold"]
    weights = checked_weights(weights_N, len(same))
    return wilson(min(1.0, float(weights @ same / weights.sum())), effective_pairs(weights))


def kappa(codes_N: ArrayLike, gold_N: ArrayLike) -> Statistic:
    """Cohen's kappa: agreement beyond what the raters' habits alone give; 1 is perfect, 0 is chance.

    Two-way for codes without ties, three-way with them. Not defined (NaN) when both raters always say one thing.
    """
    columns = rows(codes=codes_N, gold=gold_N)
    _, index = np.unique(np.concatenate([columns["codes"], columns["gold"]]), return_inverse=True)
    num, size = len(columns["codes"]), int(index.max()) + 1
    cells_NC = np.eye(size * size)[index[:num] * size + index[num:]]

    def of_weights(weights_RN: Floats) -> Floats:
        table_RCC = (weights_RN @ cells_NC).reshape(-1, size, size)
        total = table_RCC.sum((1, 2))
        same = ratio(np.trace(table_RCC, axis1=1, axis2=2), total)
        chance = ratio((table_RCC.sum(1) * table_RCC.sum(2)).sum(1), total**2)
        # Two raters of one word agree by habit alone; rounding must not make a kappa out of it.
        return ratio(same - chance, np.where(chance > 1 - 1e-12, 0.0, 1 - chance))

    return Statistic(num, of_weights, bounds=(-1.0, 1.0))


def alpha(ratings_KU: ArrayLike, *, level: Literal["nominal", "interval"] = "nominal") -> Statistic:
    """Krippendorff's alpha of K raters on U units; NaN where a rater said nothing.

    1 is perfect, 0 is chance. `nominal`: any two different ratings differ as much; `interval`: by the square of
    their distance. Its weights count units, so that a resample draws whole units (Krippendorff 2011).
    """
    ratings = np.asarray(ratings_KU, dtype=np.float64)
    if ratings.ndim != 2 or np.isinf(ratings).any():
        raise InputError(f"ratings: got shape {ratings.shape}, expected raters by units of finite numbers or NaN")
    given_U = (~np.isnan(ratings)).sum(0)
    if not (given_U >= 2).any():
        raise InputError("ratings: got no unit that two raters rated, expected at least one; rate the same units")
    ratings = ratings[:, given_U >= 2]
    counts_U = given_U[given_U >= 2].astype(np.float64)
    within_U, expected = _nominal(ratings, counts_U) if level == "nominal" else _interval(ratings, counts_U)

    def of_weights(weights_RU: Floats) -> Floats:
        weights_RU = weights_RU[:, given_U >= 2]
        total_R = weights_RU @ counts_U
        observed_R = ratio(weights_RU @ (within_U / (counts_U - 1)), total_R)
        alpha_R: Floats = 1.0 - ratio(observed_R, ratio(expected(weights_RU), total_R * (total_R - 1)))
        return alpha_R

    return Statistic(len(given_U), of_weights, bounds=(-math.inf, 1.0))


Disagreement = tuple[Floats, Callable[[Floats], Floats]]
"""Sum of differences over ordered pairs of ratings: within each unit, and over all ratings by the units' weights."""


def _nominal(ratings_KU: Floats, counts_U: Floats) -> Disagreement:
    values = np.unique(ratings_KU[~np.isnan(ratings_KU)])
    table_UC = (ratings_KU[:, :, None] == values).sum(0).astype(np.float64)
    within_U = counts_U**2 - (table_UC**2).sum(1)

    def expected(weights_RU: Floats) -> Floats:
        over_all: Floats = (weights_RU @ counts_U) ** 2 - ((weights_RU @ table_UC) ** 2).sum(1)
        return over_all

    return within_U, expected


def _interval(ratings_KU: Floats, counts_U: Floats) -> Disagreement:
    centred = ratings_KU - np.nanmedian(ratings_KU)  # the same differences, without large squares that cancel
    sums_U, squares_U = np.nansum(centred, 0), np.nansum(centred**2, 0)

    def expected(weights_RU: Floats) -> Floats:
        over_all: Floats = 2 * ((weights_RU @ counts_U) * (weights_RU @ squares_U) - (weights_RU @ sums_U) ** 2)
        return over_all

    return 2 * (counts_U * squares_U - sums_U**2), expected


def flips(margins_N: ArrayLike, other_margins_N: ArrayLike, *, weights_N: ArrayLike | None = None) -> Interval:
    """Share of pairs on which two judges favour opposite answers, with its Wilson interval.

    For a judge and its quantised copy this is the harm done. A margin of exactly 0 favours nobody and flips nothing.
    """
    columns = rows(margins=margins_N, other=other_margins_N)
    flipped = np.sign(columns["margins"]) * np.sign(columns["other"]) < 0
    weights = checked_weights(weights_N, len(flipped))
    return wilson(min(1.0, float(weights @ flipped / weights.sum())), effective_pairs(weights))


def length_controlled_agreement(codes_N: ArrayLike, gold_N: ArrayLike, longer_N: ArrayLike) -> Statistic:
    """Agreement with gold if the better answer were the longer one half of the time.

    longer_N: log ratio or difference of the lengths, first answer over second. The mean of two agreements: on pairs
    whose better answer is longer, and on pairs whose better answer is shorter. A judge that only looks at length
    gets 0.5 whatever the data. Pairs of equal length and gold ties say nothing here.
    """
    better_is_longer, right = _by_length(codes_N, gold_N, longer_N)

    def of_weights(weights_RN: Floats) -> Floats:
        longer, shorter = (_share(weights_RN, right, better_is_longer == sign) for sign in (1, -1))
        return (longer + shorter) / 2

    return Statistic(len(right), of_weights, bounds=(0.0, 1.0))


def length_bias(codes_N: ArrayLike, gold_N: ArrayLike, longer_N: ArrayLike) -> Statistic:
    """How much more often the judge agrees with gold when the better answer is the longer one; 0 is fair."""
    better_is_longer, right = _by_length(codes_N, gold_N, longer_N)

    def of_weights(weights_RN: Floats) -> Floats:
        return _share(weights_RN, right, better_is_longer == 1) - _share(weights_RN, right, better_is_longer == -1)

    return Statistic(len(right), of_weights, bounds=(-1.0, 1.0))


def _by_length(codes_N: ArrayLike, gold_N: ArrayLike, longer_N: ArrayLike) -> tuple[Floats, Floats]:
    columns = rows(codes=codes_N, gold=gold_N, longer=longer_N)
    better_is_longer = np.sign(columns["longer"]) * np.sign(columns["gold"])
    if not {1.0, -1.0} <= set(better_is_longer.tolist()):
        raise InputError(
            "got no pair whose better answer is longer, or none whose better answer is shorter, expected both; "
            "agreement cannot be told from a liking for length on these pairs"
        )
    return better_is_longer, (columns["codes"] == columns["gold"]).astype(np.float64)


def _share(weights_RN: Floats, right_N: Floats, among_N: NDArray[np.bool_]) -> Floats:
    return ratio(weights_RN[:, among_N] @ right_N[among_N], weights_RN[:, among_N].sum(1))


def corrected_prevalence(
    positives: int,
    asked: int,
    *,
    true_positives: int,
    gold_positives: int,
    true_negatives: int,
    gold_negatives: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """How common a fact really is, from how often an imperfect judge sees it (Rogan and Gladen 1978).

    The judge said yes to `positives` of `asked`; against gold it finds `true_positives` of `gold_positives` and
    `true_negatives` of `gold_negatives`. The interval has the uncertainty of all three shares in it (draws from
    their Jeffreys posteriors). Raises InputError for a judge no better than chance: it says nothing about this.
    """
    shares = ((positives, asked), (true_positives, gold_positives), (true_negatives, gold_negatives))
    if any(not 0 <= hits <= total or total < 1 for hits, total in shares):
        raise InputError(f"got {shares} as (hits, of how many), expected hits from 0 to a total of at least 1")
    seen, found, spared = (hits / total for hits, total in shares)
    if found + spared <= 1:
        raise InputError(
            f"the judge finds {found:.0%} of the positives and spares {spared:.0%} of the negatives, expected more "
            "than 100 % together; it is no better than chance on this fact, so ask another judge"
        )
    drawn = [rng.beta(hits + 0.5, total - hits + 0.5, 10_000) for hits, total in shares]
    informative = drawn[1] + drawn[2] - 1
    # In draws where the judge is no better than chance the prevalence could be anything.
    values = np.where(
        informative > 0,
        (drawn[0] + drawn[2] - 1) / np.where(informative > 0, informative, 1.0),
        rng.random(len(informative)),
    )
    low, high = np.quantile(np.clip(values, 0, 1), [(1 - level) / 2, (1 + level) / 2])
    value = float(np.clip((seen + spared - 1) / (found + spared - 1), 0, 1))
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)), pairs=asked)
