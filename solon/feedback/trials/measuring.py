"""Asks one judge about many pairs and measures the time.

    measurement = await measure(judge, pairs, parts=5)

The pairs are dealt into parts. Each part is asked once and timed separately, and a rate is the median over parts:
repeating the same questions would measure the engine's prefix cache. All judges get the same parts in the same order,
so that their rates can be compared by part.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from solon.feedback.interfaces import Judge
from solon.feedback.trials.gold import GoldPair
from solon.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One timed part of the pairs."""

    verdicts: int
    seconds: float

    @property
    def rate(self) -> float:
        """Verdicts per second."""
        return self.verdicts / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A judge's verdicts on the pairs, in their order, and their cost. None: no valid verdict."""

    name: str
    margins: tuple[float | None, ...]
    raw_margins: tuple[float | None, ...]
    offsets: tuple[float | None, ...]
    parts: tuple[Part, ...]
    questions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    usd: float = 0.0
    """Charges of endpoints."""
    invalid: dict[str, int] = field(default_factory=dict)
    """Pairs without a verdict, by status."""
    disk_bytes: int | None = None
    """Size of the weight files."""
    resident_bytes: int | None = None
    """Peak memory of the judge's process, including libraries."""
    runs_as: str = ""
    """Engine, dtype and quantisation."""

    @property
    def rate(self) -> float:
        """Verdicts per second with both orders asked: the median over parts."""
        return statistics.median(part.rate for part in self.parts)


async def measure(
    judge: Judge,
    pairs: Sequence[GoldPair],
    *,
    parts: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Ask a judge about all pairs. It must be warm and without a cache of verdicts, or the rate is not its own."""
    meter = Meter(judge, pairs, parts=parts, clock=clock)
    for part in range(meter.num_parts):
        await meter.ask(part)
    return meter.result()


class Meter:
    """Measures one judge part by part, so that several can take turns on a shared machine."""

    def __init__(
        self,
        judge: Judge,
        pairs: Sequence[GoldPair],
        *,
        parts: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._judge = judge
        self._pairs = pairs
        self._clock = clock
        self._dealt = deal(len(pairs), parts)
        self._verdicts: dict[int, list[Verdict]] = {}
        self._timed: list[Part] = []

    @property
    def num_parts(self) -> int:
        """Number of parts, at most the number of pairs."""
        return len(self._dealt)

    async def ask(self, part: int) -> None:
        """Ask about one part and time it."""
        items = [item for index in self._dealt[part] for item in self._pairs[index].items]
        start = self._clock()
        said = await self._judge.judge(items)
        self._timed.append(Part(verdicts=len(items), seconds=self._clock() - start))
        remaining = iter(said)
        for index in self._dealt[part]:
            self._verdicts[index] = [next(remaining) for _ in self._pairs[index].items]

    def result(self) -> Measurement:
        """The measurement after all parts."""
        verdicts = [self._verdicts[index] for index in range(len(self._pairs))]
        means = [_mean(said, pair.weights) for said, pair in zip(verdicts, self._pairs, strict=True)]
        everything = [verdict for said in verdicts for verdict in said]
        return Measurement(
            name=self._judge.name,
            margins=tuple(margin for margin, *_ in means),
            raw_margins=tuple(raw for _, raw, _ in means),
            offsets=tuple(offset for *_, offset in means),
            parts=tuple(self._timed),
            questions=sum(verdict.questions for verdict in everything),
            prompt_tokens=sum(verdict.prompt_tokens for verdict in everything),
            cached_tokens=sum(verdict.cached_tokens for verdict in everything),
            usd=sum(verdict.usd for verdict in everything),
            invalid=dict(Counter(str(verdict.status) for said in verdicts for verdict in _first_invalid(said))),
        )


def deal(num: int, parts: int) -> list[list[int]]:
    """Indices of the pairs in each part, dealt like cards so that long pairs are spread. At least one in each.

    >>> deal(5, 2)
    [[0, 2, 4], [1, 3]]
    """
    return [list(range(part, num, parts)) for part in range(min(parts, num))]


def _mean(verdicts: Sequence[Verdict], weights: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Margin, raw margin and offset of a pair: weighted means over its principles; None when a value is missing."""
    total = math.fsum(weights)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return math.fsum(value * weight for value, weight in zip(known, weights, strict=True)) / total

    return (
        mean([v.margin for v in verdicts]),
        mean([v.raw_margin if v.raw_margin is not None else v.margin for v in verdicts]),
        mean([v.position_offset if v.status.valid else None for v in verdicts]),
    )


def _first_invalid(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if not verdict.status.valid][:1]
