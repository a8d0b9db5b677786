"""Agreement of two raters: agreement, kappa, flips.

A rating is a code: 1 for the first answer (or yes), -1 for the second (or no), 0 for a tie. A `Statistic` gives its
value, its interval, and its difference to another one.

N pairs, R resamples, C codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """Share of pairs with the same code, with its Wilson interval. A tie agrees only with a tie.

    A share of 80 % is known to 2 points either way from 1,537 pairs.
    """
    columns = rows(codes=codes_N, gold=gold_N)
    same = columns["codes"] == columns["gold"]
    weights = checked_weights(weights_N, len(same))
    return wilson(min(1.0, float(weights @ same / weights.sum())), effective_pairs(weights))


def kappa(codes_N: ArrayLike, gold_N: ArrayLike) -> Statistic:
    """Cohen's kappa: agreement beyond that expected from the raters' marginals; 1 is perfect, 0 is chance.

    Two-way for codes without ties, three-way with them. Undefined (NaN) when both raters always give one code.
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
        # Two raters with one code agree by habit alone; rounding must not turn that into a kappa.
        return ratio(same - chance, np.where(chance > 1 - 1e-12, 0.0, 1 - chance))

    return Statistic(num, of_weights, bounds=(-1.0, 1.0))


def flips(margins_N: ArrayLike, other_margins_N: ArrayLike, *, weights_N: ArrayLike | None = None) -> Interval:
    """Share of pairs on which two judges favour opposite answers, with its Wilson interval.

    For a judge and its quantised copy this measures the damage. A margin of exactly 0 favours no answer and never
    flips.
    """
    columns = rows(margins=margins_N, other=other_margins_N)
    flipped = np.sign(columns["margins"]) * np.sign(columns["other"]) < 0
    weights = checked_weights(weights_N, len(flipped))
    return wilson(min(1.0, float(weights @ flipped / weights.sum())), effective_pairs(weights))
