"""Cost and quality of judges, side by side on the same pairs.

comparison = compare([await measure(one, pairs), await measure(other, pairs)], pairs)
"""

# N pairs

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solon.errors import InputError
from solon.feedback.quality.agreement import agreement, codes, flips, kappa
from solon.feedback.quality.consistency import position_quality
from solon.feedback.quality.intervals import Interval, Statistic, mcnemar
from solon.feedback.quality.metrics import Bin, ece, ece_floor, reliability
from solon.feedback.trials.gold import GoldPair
from solon.feedback.trials.measuring import Measurement

LEAST_DECIDED = 30
"""With fewer decided pairs, no figure is meaningful."""
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRow:
    """One line of the comparison. Shares refer to the pairs that gold decides and all judges answered."""

    name: str
    runs_as: str
    verdicts_per_s: float
    speedup: float
    """Rate relative to the first judge, the median over parts."""
    disk_bytes: int | None
    resident_bytes: int | None
    agreement: Interval
    kappa: Interval
    """With gold, beyond chance."""
    ece: Interval
    ece_floor: float
    """Average of `ece` from noise alone."""
    position_consistency: Interval | None
    """None if it was not asked in both orders."""
    position_offset: Interval | None
    invalid: float
    """Share of all pairs without a verdict."""
    reliability: tuple[Bin, ...]
    """Claimed against observed frequencies."""
    usd_per_1k: float | None
    """Per thousand valid labels; None without a price."""
    flips: Interval | None = None
    """Share of pairs on which it contradicts the first judge; None for the first one."""
    kappa_with_first: Interval | None = None
    lost_points: float | None = None
    """Agreement of the first judge minus this one's, in percentage points."""
    p: float | None = None
    """McNemar: probability that two equally good judges differ at least this much by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All judges, with the pairs of the comparison."""

    rows: tuple[JudgeRow, ...]
    pairs: int
    decided: int
    """Pairs that gold decides."""
    common: int
    """Those with a verdict from every judge."""


def compare(
    measurements: Sequence[Measurement],
    pairs: Sequence[GoldPair],
    *,
    usd_per_hour: float = 0.0,
    seed: int = 0,
    resamples: int = 1000,
) -> Comparison:
    """Compare judges; the first one is the baseline.

    Every judge is scored on the same pairs: a judge that omits hard pairs would look better on the rest. Its omissions
    are counted in `invalid`. Raises InputError when too few pairs remain.
    """
    decided_N = np.array([pair.is_decided for pair in pairs])
    valid_N = np.array([all(m.margins[i] is not None for m in measurements) for i in range(len(pairs))])
    kept = np.flatnonzero(decided_N & valid_N)
    if len(kept) < LEAST_DECIDED:
        raise InputError(
            f"{len(kept)} of {len(pairs)} pairs are decided by gold and answered by every judge, expected at least "
            f"{LEAST_DECIDED}; "
            + "; ".join(f"{m.name} left out {sum(m.invalid.values())} {_statuses(m)}".rstrip() for m in measurements)
        )
    scored = _Scored(pairs=pairs, kept=kept, rng_seed=seed, resamples=resamples)
    rows = [scored.row(m, measurements[0], usd_per_hour=usd_per_hour) for m in measurements]
    return Comparison(rows=tuple(rows), pairs=len(pairs), decided=int(decided_N.sum()), common=len(kept))


class _Scored:
    """The pairs on which all judges are scored."""

    def __init__(self, *, pairs: Sequence[GoldPair], kept: NDArray[np.intp], rng_seed: int, resamples: int) -> None:
        self._kept = kept
        self._seed, self._resamples = rng_seed, resamples
        self._targets_N = np.array([pairs[i].target for i in kept])
        self._gold_N = codes(self._targets_N - 0.5)
        self._clusters_N = np.array([pairs[i].prompt_id for i in kept])

    def row(self, one: Measurement, first: Measurement, *, usd_per_hour: float) -> JudgeRow:
        margins_N = self._column(one.margins)
        said_N, right_N = codes(margins_N), codes(margins_N) == self._gold_N
        consistency, offset = self._position(one)
        row = JudgeRow(
            name=one.name,
            runs_as=one.runs_as,
            verdicts_per_s=one.rate,
            speedup=statistics.median(a.rate / b.rate for a, b in zip(one.parts, first.parts, strict=True)),
            disk_bytes=one.disk_bytes,
            resident_bytes=one.resident_bytes,
            agreement=agreement(said_N, self._gold_N),
            kappa=self._interval(kappa(said_N, self._gold_N)),
            ece=self._interval(ece(margins_N, self._targets_N, folded=True)),
            ece_floor=ece_floor(margins_N, folded=True),
            position_consistency=consistency,
            position_offset=offset,
            invalid=sum(one.invalid.values()) / len(one.margins),
            reliability=reliability(margins_N, self._targets_N, folded=True),
            usd_per_1k=_usd_per_1k(one, usd_per_hour),
        )
        if one is first:
            return row
        first_N = self._column(first.margins)
        first_right_N = codes(first_N) == self._gold_N
        return replace(
            row,
            flips=flips(margins_N, first_N),
            kappa_with_first=self._interval(kappa(said_N, codes(first_N))),
            lost_points=100 * float(first_right_N.mean() - right_N.mean()),
            p=mcnemar(first_right_N, right_N).p,
        )

    def _column(self, values: Sequence[float | None]) -> NDArray[np.float64]:
        return np.array([values[i] for i in self._kept], dtype=np.float64)

    def _position(self, one: Measurement) -> tuple[Interval | None, Interval | None]:
        known = [i for i in self._kept if one.offsets[i] is not None]
        if not known:
            return None, None
        raw, offsets = ([values[i] for i in known] for values in (one.raw_margins, one.offsets))
        quality = position_quality(
            np.array(raw, dtype=np.float64), np.array(offsets, dtype=np.float64), rng=np.random.default_rng(self._seed)
        )
        return quality.consistent, quality.offset

    def _interval(self, statistic: Statistic) -> Interval:
        return statistic.interval(
            np.random.default_rng(self._seed), clusters_N=self._clusters_N, resamples=self._resamples
        )


def _statuses(measurement: Measurement) -> str:
    found = ", ".join(f"{count} {status}" for status, count in sorted(measurement.invalid.items()))
    return f"({found})" if found else ""


def _usd_per_1k(one: Measurement, usd_per_hour: float) -> float | None:
    """Machine hours and endpoint charges per thousand valid labels."""
    valid = sum(margin is not None for margin in one.margins)
    if not valid or not (usd_per_hour or one.usd):
        return None
    verdicts = sum(part.verdicts for part in one.parts)
    return 1000 * (usd_per_hour * verdicts / one.rate / SECONDS_PER_HOUR + one.usd) / valid
