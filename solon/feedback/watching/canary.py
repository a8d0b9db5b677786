"""Asks the judge about the same pairs repeatedly: if its answers change, the judge has changed, not the policy.

Replaced weights under the same name, another engine or template, a damaged cache: all of them move verdicts on fixed
pairs. The pairs have a gold verdict, so that the initial quality of the judge is measured, too. Ask without the caches:
a cached verdict repeats the first reading and proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.trials.gold import GoldPair
from solon.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReading:
    """A reading of the judge, compared with the first one and with gold."""

    step: int
    accuracy: float
    """Share of the decided pairs on which the judge agrees with gold; a missing verdict does not agree."""
    flips: float
    """Share of all pairs whose favoured answer differs from the first reading, or that had a verdict in only one of the
    two."""
    largest_change: float
    """Largest change of a margin, nats, over the pairs with a verdict in both readings."""
    silent: float
    """Share of the pairs without a valid verdict."""
    flipped: tuple[int, ...]
    """Indices of the flipped pairs."""

    @property
    def is_identical(self) -> bool:
        """Whether every verdict equals the first one exactly."""
        return self.largest_change == 0.0 and not self.flipped

    def metrics(self) -> dict[str, float]:
        """`watch/canary_.../...`"""
        return {
            "watch/canary_accuracy/mean": self.accuracy,
            "watch/canary_flips/share": self.flips,
            "watch/canary_change/max": self.largest_change,
            "watch/canary_silent/share": self.silent,
        }


class Canary:
    """A fixed set of gold pairs and its first reading.

    canary = Canary(load_gold("canary.jsonl", constitution))
    reading = canary.read(step, await judge.judge(canary.items))
    """

    def __init__(self, pairs: Sequence[GoldPair]) -> None:
        if not pairs:
            raise InputError("the canary set is empty, expected pairs with a gold verdict; 200 tell half a percent")
        self.pairs = tuple(pairs)
        self.items: tuple[Item, ...] = tuple(item for pair in self.pairs for item in pair.items)
        self._first: list[float | None] | None = None

    @property
    def first(self) -> tuple[float | None, ...] | None:
        """Margins of the first reading, one for each pair."""
        return None if self._first is None else tuple(self._first)

    def restore(self, first: Sequence[float | None] | None) -> None:
        """Compare with this reading from now on. Raises InputError when it is of other pairs."""
        if first is not None and len(first) != len(self.pairs):
            raise InputError(
                f"--resume: the first reading was of {len(first)} canary pairs, the file has {len(self.pairs)} now; "
                "restore it, or start a run of another --name"
            )
        self._first = None if first is None else list(first)

    def read(self, step: int, verdicts: Sequence[Verdict]) -> CanaryReading:
        """Compare with the first reading; the first call defines it. Verdicts in the order of `items`."""
        if len(verdicts) != len(self.items):
            raise ValueError(
                f"got {len(verdicts)} verdicts for {len(self.items)} canary items, expected one each, in their order"
            )
        margins = self._margins(verdicts)
        if self._first is None:
            self._first = margins
        flipped = tuple(
            index for index, (was, now) in enumerate(zip(self._first, margins, strict=True)) if _is_flip(was, now)
        )
        changes = [
            abs(now - was) for was, now in zip(self._first, margins, strict=True) if was is not None and now is not None
        ]
        decided = [(pair, margin) for pair, margin in zip(self.pairs, margins, strict=True) if pair.is_decided]
        right = sum(1 for pair, margin in decided if margin and (margin > 0) == (pair.target > 0.5))
        return CanaryReading(
            step=step,
            accuracy=right / len(decided) if decided else math.nan,
            flips=len(flipped) / len(self.pairs),
            largest_change=max(changes, default=0.0),
            silent=sum(margin is None for margin in margins) / len(self.pairs),
            flipped=flipped,
        )

    def _margins(self, verdicts: Sequence[Verdict]) -> list[float | None]:
        """One margin for each pair, the weighted mean over its principles; None when a verdict is missing."""
        found: list[float | None] = []
        place = 0
        for pair in self.pairs:
            margins = [verdict.margin for verdict in verdicts[place : place + len(pair.items)]]
            place += len(pair.items)
            known = [margin for margin in margins if margin is not None]
            if len(known) < len(margins):
                found.append(None)
            else:
                found.append(sum(w * m for w, m in zip(pair.weights, known, strict=True)) / sum(pair.weights))
        return found


def _is_flip(was: float | None, now: float | None) -> bool:
    if was is None or now is None:
        return (was is None) != (now is None)
    return was * now < 0
