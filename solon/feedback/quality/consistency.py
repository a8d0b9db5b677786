"""Does a judge contradict itself: between the two orders of a pair, between (x, y) and (y, x), around a triple?"""

# N pairs, R resamples, T thresholds, P prompts, K answers of a prompt

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from solon.errors import InputError
from solon.feedback.quality.intervals import Floats, Interval, Statistic, mean, ratio, rows, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionQuality:
    """How much the place of an answer decides. The three shares and undecided pairs add up to 1."""

    consistent: Interval
    """Share of pairs on which both orders favour the same answer."""
    first_place: Interval
    """Share on which both orders favour whatever stands first (primacy)."""
    last_place: Interval
    """Share on which both orders favour whatever stands last (recency)."""
    offset: Interval
    """Mean position offset, nats; above 0 the first place is favoured."""


def position_quality(
    raw_margins_N: ArrayLike, offsets_N: ArrayLike, *, rng: np.random.Generator, clusters_N: ArrayLike | None = None
) -> PositionQuality:
    """From the raw margins and position offsets of pairs asked in both orders.

    One order says margin + offset about the first answer, the other margin - offset: they agree where the margin
    is the larger of the two.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageCurve:
    """Hard labels given only above a threshold: how many pairs get one, and how many of those hold in both orders.

    Most demanding threshold first.
    """

    thresholds_T: Floats
    """Nats; a pair gets a hard label when its margin is at least this far from zero."""
    coverages_T: Floats
    shares_T: Floats
    num: int

    def at(self, coverage: float) -> tuple[float, Interval]:
        """Threshold and consistency when at least this share of the pairs gets a hard label."""
        if not 0 < coverage <= 1:
            raise InputError(f"coverage: got {coverage}, expected above 0 and at most 1")
        index = int(np.searchsorted(self.coverages_T, coverage - 1e-12))
        labelled = round(self.coverages_T[index] * self.num)
        return float(self.thresholds_T[index]), wilson(float(self.shares_T[index]), labelled)


def order_consistency(one_order_N: ArrayLike, other_order_N: ArrayLike) -> CoverageCurve:
    """Consistency of hard labels against coverage, from what each order alone says about the same answer.

    Both are log-odds of the first answer, nats: hand in margin + offset and margin - offset for the bare judge, or
    both less the usual offset, with its sign in that order, for labels that are debiased. Pairs count by the mean
    of both.
    """
    columns = rows(one_order=one_order_N, other_order=other_order_N)
    one, other = columns["one_order"], columns["other_order"]
    strength = np.abs(one / 2 + other / 2)
    order = np.argsort(-strength, kind="stable")
    strength, agree = strength[order], (np.sign(one) * np.sign(other) > 0)[order]
    # Pairs of one strength get a label together or not at all.
    ends = np.flatnonzero(np.diff(strength, append=-1.0) < 0)
    return CoverageCurve(
        thresholds_T=strength[ends],
        coverages_T=(ends + 1) / len(strength),
        shares_T=np.cumsum(agree)[ends] / (ends + 1),
        num=len(strength),
    )


def antisymmetry_residual(margins_N: ArrayLike, exchanged_N: ArrayLike) -> float:
    """Largest |margin(x, y) + margin(y, x)|, nats. 0 is a judge whose probabilities of the two add up to 1."""
    columns = rows(margins=margins_N, exchanged=exchanged_N)
    return float(np.abs(columns["margins"] + columns["exchanged"]).max())


def intransitivity(margins_PKK: ArrayLike) -> Statistic:
    """Share of decided triples that go round in a circle: x over y, y over z, z over x.

    margins_PKK: for each prompt, the margin of answer i over answer j; NaN where the pair was not asked. One
    triangle is enough; where both are given they are averaged. A judge of coins gets 1/4. Its weights count
    prompts, because triples of one prompt share their pairs.
    """
    margins = np.asarray(margins_PKK, dtype=np.float64)
    if margins.ndim != 3 or margins.shape[1] != margins.shape[2] or np.isinf(margins).any():
        raise InputError(f"margins: got shape {margins.shape}, expected prompts by answers by answers, finite or NaN")
    mirrored = -margins.transpose(0, 2, 1)
    both = np.where(np.isnan(margins), mirrored, np.where(np.isnan(mirrored), margins, margins / 2 + mirrored / 2))
    beats_PKK = (both > 0).astype(np.float64)
    decided_PKK = beats_PKK + beats_PKK.transpose(0, 2, 1)
    circles_P = np.trace(beats_PKK @ beats_PKK @ beats_PKK, axis1=1, axis2=2) / 3
    triples_P = np.trace(decided_PKK @ decided_PKK @ decided_PKK, axis1=1, axis2=2) / 6
    if not triples_P.sum():
        raise InputError("got no three answers of a prompt that were all compared with each other, expected some")

    def of_weights(weights_RP: Floats) -> Floats:
        return ratio(weights_RP @ circles_P, weights_RP @ triples_P)

    return Statistic(len(margins), of_weights, bounds=(0.0, 1.0))
