"""A judge made of judges that are all asked about every item: their joint verdict.

    jury = Jury([small, other, third], JuryConfig(method="median", min_jurors=2))
    verdicts = await jury.judge(items)
    said_JN = await jury.poll(items)          # every juror's own verdicts, to see where they differ

A juror without a verdict is omitted and counted. With too few left there is no verdict: a missing vote is not a vote.
"""

# J jurors, N items

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.errors import InputError, first_cause
from solon.feedback.interfaces import Item, Judge, sound
from solon.feedback.panels.cascade import summed_costs
from solon.verdicts import Status, Verdict

Method = Literal["mean", "median", "majority"]


class JuryConfig(BaseModel):
    """`JuryConfig(method="median", min_jurors=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "mean"
    """`mean` of the calibrated margins; their `median`, which is robust to one outlier; `majority`: each juror has one
    vote, whatever the size of its margin, and none if its margin is within the tie band."""
    weights: tuple[float, ...] = ()
    """Weight of each juror, in their order; empty: equal weights."""
    min_jurors: int = Field(2, ge=1)
    """With fewer valid jurors than this, the jury has no verdict."""
    tie_band: float = Field(0.1, ge=0)
    """A margin below this many nats is a tie; it keeps its value."""

    @model_validator(mode="after")
    def _weights_count(self) -> Self:
        if any(not (math.isfinite(weight) and weight > 0) for weight in self.weights):
            raise ValueError(f"weights: got {list(self.weights)}, expected numbers above 0; leave a juror out instead")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class JuryVerdict(Verdict):
    """A verdict together with the jurors' verdicts."""

    jurors: tuple[Verdict, ...] = ()
    """The verdict of each juror, in their order, including failures."""
    failed: int = 0
    """Jurors without a verdict."""
    disagreement: float | None = None
    """Weighted variance of the valid margins, nats squared; None when fewer than two are valid."""


class Jury:
    """Implements `Judge`. A lost juror (its `judge` raises) fails the whole call."""

    def __init__(self, judges: Sequence[Judge], config: JuryConfig | None = None, *, name: str = "") -> None:
        self._config = config or JuryConfig()
        if len(judges) < self._config.min_jurors:
            raise InputError(
                f"got {len(judges)} jurors, expected at least min_jurors = {self._config.min_jurors}; add jurors or "
                "lower min_jurors"
            )
        if self._config.weights and len(self._config.weights) != len(judges):
            raise InputError(f"got {len(self._config.weights)} weights for {len(judges)} jurors, expected one each")
        self.name = name or " + ".join(judge.name for judge in judges)
        self._judges = tuple(judges)
        self._weights = self._config.weights or (1.0,) * len(judges)

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        said_JN = await self.poll(items)
        return [self.decide([said_N[n] for said_N in said_JN]) for n in range(len(items))]

    async def poll(self, items: Sequence[Item]) -> list[list[Verdict]]:
        """The jurors' own verdicts: a list for each juror, in the order of the items. Jurors are asked concurrently."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(judge.judge(items)) for judge in self._judges]
        except ExceptionGroup as errors:
            raise first_cause(errors) from None
        said_JN = [task.result() for task in tasks]
        for judge, said_N in zip(self._judges, said_JN, strict=True):
            assert len(said_N) == len(items), f"{judge.name}: {len(said_N)} verdicts on {len(items)} items"
        return said_JN

    def decide(self, jurors: Sequence[Verdict]) -> JuryVerdict:
        """One verdict from all jurors' verdicts on one item."""
        jurors = tuple(sound(verdict) for verdict in jurors)
        valid = [(v.margin, w, v) for v, w in zip(jurors, self._weights, strict=True) if v.margin is not None]
        margins, weights = [margin for margin, _, _ in valid], [weight for _, weight, _ in valid]
        masses, sources = [v.mass for *_, v in valid], {v.source for *_, v in valid}
        margin = self._together(margins, weights) if len(valid) >= self._config.min_jurors else None
        if margin is None:
            failures = Counter(v.status for v in jurors if not v.status.valid)
            status = failures.most_common(1)[0][0]
        else:
            status = Status.TIE if abs(margin) < self._config.tie_band else Status.OK
        silent = [v for v in jurors if not v.status.valid]
        return JuryVerdict(
            status=status,
            margin=margin,
            mass=min(masses, default=0.0),
            judge=self.name,
            source=sources.pop() if len(sources) == 1 else "judge",
            detail="; ".join(f"{v.judge}: {v.status}" + (f" ({v.detail})" if v.detail else "") for v in silent),
            jurors=jurors,
            failed=len(silent),
            disagreement=_variance(margins, weights),
            **summed_costs(jurors),
        )

    def _together(self, margins: Sequence[float], weights: Sequence[float]) -> float:
        match self._config.method:
            case "mean":
                return _mean(margins, weights)
            case "median":
                return weighted_median(margins, weights)
            case "majority":
                return self._majority(margins, weights)

    def _majority(self, margins: Sequence[float], weights: Sequence[float]) -> float:
        """Log-odds of the votes, with half an average vote added to either side: three to nothing is not beyond
        doubt."""
        band, half = self._config.tie_band, sum(weights) / len(weights) / 2
        voting = [(margin, weight) for margin, weight in zip(margins, weights, strict=True) if abs(margin) >= band]
        votes = sum(weight for margin, weight in voting if margin > 0)
        against = sum(weight for margin, weight in voting if margin < 0)
        return math.log((votes + half) / (against + half))


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The value with half of the weight on either side; the mean of two where both qualify.

    >>> weighted_median([3.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    2.0
    """
    ordered = sorted(zip(values, weights, strict=True))
    half, below = sum(weights) / 2, 0.0
    for place, (value, weight) in enumerate(ordered):
        below += weight
        if math.isclose(below, half, rel_tol=1e-12) and place + 1 < len(ordered):
            return (value + ordered[place + 1][0]) / 2
        if below > half:
            return value
    return ordered[-1][0]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _variance(values: Sequence[float], weights: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = _mean(values, weights)
    return _mean([(value - centre) ** 2 for value in values], weights)
