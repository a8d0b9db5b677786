"""Whether the answers still obey each principle, by gold: a mean over principles may rise while one of them is lost.

gold's labels ──▶ windows of the audit ──▶ the first ones: reference; the others: principles that are lost
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from solon.records import Feedback

MIN_ANSWERS = 8
"""Fewest answers of a window to which a principle applies; fewer are not evaluated."""
SURE = 3.0
"""Standard errors by which a share must have fallen: by chance about once in 700 checks."""

Counts = Mapping[str, tuple[int, int]]
"""By principle: answers that obey it, and answers to which it applies."""


class PrincipleState(BaseModel):
    """State for a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    counts: dict[str, tuple[int, int]] = {}
    reference: dict[str, tuple[int, int]] = {}
    windows: int = 0
    low: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LostPrinciple:
    """A principle that answers no longer obey. Shares of answers."""

    principle: str
    was: float
    now: float
    num: int
    """Answers of the last window to which it applies."""


class PrincipleDrift:
    """Observes gold's feedback; `close` ends a window. A principle is lost when two consecutive windows show it."""

    def __init__(self, *, reference_windows: int, part: float) -> None:
        """part: a principle is lost below this part of its share in the first windows."""
        self._reference_windows, self._part = reference_windows, part
        self._counts: dict[str, tuple[int, int]] = {}
        self._reference: dict[str, tuple[int, int]] = {}
        self._windows = 0
        self._low: set[str] = set()

    def state(self) -> PrincipleState:
        """State for a checkpoint."""
        return PrincipleState(
            counts=self._counts, reference=self._reference, windows=self._windows, low=frozenset(self._low)
        )

    def restore(self, state: PrincipleState) -> None:
        """Continue from a `state`."""
        self._counts, self._reference = dict(state.counts), dict(state.reference)
        self._windows, self._low = state.windows, set(state.low)

    def observe(self, gold: Feedback) -> None:
        """Feedback of yes/no questions; an answer obeys a principle when all of its questions speak for it."""
        margins: dict[tuple[str, int], list[float | None]] = {}
        for label in gold.labels:
            if len(label.rollouts) == 1:
                margins.setdefault((label.principle_id, label.rollouts[0]), []).append(label.margin)
        for (principle, _), found in margins.items():
            known = [margin for margin in found if margin is not None]
            if len(known) == len(found):
                obeys = all(margin > 0 for margin in known)
                self._counts = _sum(self._counts, {principle: (int(obeys), 1)})

    def close(self) -> tuple[dict[str, float], list[LostPrinciple]]:
        """Metrics of the window, and the principles that are now lost."""
        counts, self._counts = self._counts, {}
        metrics = {f"watch/gold_{name}/share": obeyed / num for name, (obeyed, num) in counts.items()}
        self._windows += 1
        if self._windows <= self._reference_windows:
            self._reference = _sum(self._reference, counts)
            return metrics, []
        low = [found for name, now in counts.items() if (found := self._compare(name, now)) is not None]
        lost = [one for one in low if one.principle in self._low]
        # A window with too few answers changes nothing.
        heard = {name for name, (_, num) in counts.items() if num >= MIN_ANSWERS}
        self._low = (self._low - heard) | {one.principle for one in low}
        return metrics, lost

    def _compare(self, name: str, counts: tuple[int, int]) -> LostPrinciple | None:
        (obeyed, num), (first, total) = counts, self._reference.get(name, (0, 0))
        if num < MIN_ANSWERS or not total:
            return None
        was, now, pooled = first / total, obeyed / num, (first + obeyed) / (total + num)
        error = math.sqrt(pooled * (1 - pooled) * (1 / total + 1 / num))
        if now >= self._part * was or was - now <= SURE * error:
            return None
        return LostPrinciple(principle=name, was=was, now=now, num=num)


def describe(lost: Sequence[LostPrinciple]) -> str:
    """For people.

    >>> describe([LostPrinciple(principle="harmless", was=0.4, now=0.0, num=31)])
    'harmless 40% -> 0% of 31 answers'
    """
    return ", ".join(f"{one.principle} {one.was:.0%} -> {one.now:.0%} of {one.num} answers" for one in lost)


def _sum(one: Counts, other: Counts) -> dict[str, tuple[int, int]]:
    found = dict(one)
    for name, (obeyed, num) in other.items():
        before = found.get(name, (0, 0))
        found[name] = (before[0] + obeyed, before[1] + num)
    return found
