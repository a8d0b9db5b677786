"""The budget of one start of a labelling run: a number of labels, an amount of money.

Both are reserved before a row is labelled and settled after it, so that concurrent rows do not overshoot. The number of
labels of a row is known before, so that limit is never exceeded. The cost is not known before: a row is reserved at the
price of the most expensive label so far, the first row is labelled alone to learn a price, and the number of labels in
progress does not exceed the number of known prices. An endpoint's own cap, which reserves every question at its highest
price, is the last guard: one endpoint never exceeds the limit. Several can, if labels in progress cost more than any
before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from solon.records import Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of this start. None: no limit."""

    labels: int | None = None
    usd: float | None = None


UNLIMITED = Budget()


class Purse:
    """`if await purse.take(3): …; purse.settle(3, labels)`. For one event loop."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._changed = asyncio.Event()
        self._under_way = 0
        """Labels of the rows in progress."""
        self.labels = 0
        """Labels made."""
        self.usd = 0.0
        self._priced = 0
        """Labels with a known price."""
        self._dearest: float | None = None
        """USD of the most expensive label; None before the first answer of a judge."""
        self.refusal = ""
        """Why the first row that did not fit was refused; empty: none was."""

    async def take(self, labels: int) -> bool:
        """Reserve a row of `labels` labels. Waits while settling rows in progress may free enough. False: it does not
        fit, and `refusal` gives the reason."""
        while not self.refusal:
            if self._fits(labels) and self._is_affordable(labels):
                self._under_way += labels
                return True
            if self._fits(labels) and self._under_way:
                self._changed.clear()
                await self._changed.wait()
                continue
            self.refusal = self._why_not(labels)
            self._changed.set()  # wakes rows that wait for money: there is none left
        return False

    def settle(self, reserved: int, labels: Sequence[Label], *, is_kept: bool = True) -> None:
        """Book a row. is_kept: False if its labels are not stored."""
        self._under_way -= reserved
        self.labels += len(labels) if is_kept else 0
        self.usd += sum(label.verdict.usd for label in labels)
        prices = [label.verdict.usd for label in labels if label.verdict.questions > label.verdict.cache_hits]
        if prices:
            self._dearest = max(self._dearest or 0.0, *prices)
            self._priced += len(prices)
        self._changed.set()

    def _fits(self, labels: int) -> bool:
        limit = self._budget.labels
        return limit is None or self.labels + self._under_way + labels <= limit

    def _is_affordable(self, labels: int) -> bool:
        if self._budget.usd is None or self._dearest == 0:
            return True
        if self._dearest is None:
            return not self._under_way and self.usd < self._budget.usd
        if self._under_way and self._under_way + labels > self._priced:
            return False
        # Prices are sums of floats: a budget for ten rows must suffice for ten.
        return self.usd + (self._under_way + labels) * self._dearest <= self._budget.usd * (1 + 1e-9)

    def _why_not(self, labels: int) -> str:
        asked = self.labels + self._under_way
        if not self._fits(labels):
            return (
                f"the limit of {self._budget.labels} labels is reached: {asked} are asked for in this start, and the "
                f"next row needs {labels}; raise --max-labels, or start the same command again to continue"
            )
        return (
            f"the limit of {self._budget.usd:g} USD is reached: {self.usd:.4g} were spent in this start, and the next "
            f"row may cost {labels * (self._dearest or 0):.2g}; raise --max-usd, or start the same command again"
        )
