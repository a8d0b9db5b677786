"""When a pair is asked in both orders, and when one order and the judge's usual offset suffice.

Asking both orders removes position bias and doubles the cost. Most pairs do not need it: a judge's offset hardly varies
between pairs of one kind, so one order minus the usual offset gives the same verdict, unless that verdict is near zero.
So the offset and its spread are learned from pairs asked twice, a pair is asked a second time if its verdict is within
a few spreads of zero, and a random share of the others is asked twice anyway, so that the selection does not bias
offset and spread.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from solon.feedback.interfaces import Item

LENGTH_BUCKETS = (-0.5, 0.5)
"""Borders of log2 (length shown first / length shown last): position bias depends on the ratio of lengths."""


class SwapConfig(BaseModel):
    """`SwapConfig(orders="adaptive", audit=0.1)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orders: Literal["both", "adaptive"] = "adaptive"
    """`both`: every pair twice. `adaptive`: the second order only where it can change the verdict."""
    spreads: float = Field(3.0, gt=0)
    """A one-order verdict closer to zero than this many standard deviations of the offset is asked again."""
    audit: float = Field(0.05, gt=0, le=1)
    """Share of all pairs asked in both orders whatever the first order says."""
    warmup: int = Field(16, ge=2)
    """Pairs of a kind that are asked in both orders before their offset is trusted."""
    contradicted: Literal["drop", "keep"] = "drop"
    """For `solon label`: a pair whose two orders favour different answers under every principle is no preference.
    `keep`: it is one, with the margin that remains without the offset."""


@dataclass(slots=True)
class Offset:
    """Running mean and spread of a position offset, nats; old pairs fade after `memory` new ones."""

    memory: int = 1000
    count: int = 0
    mean: float = 0.0
    _squares: float = field(default=0.0, repr=False)

    def add(self, offset: float) -> None:
        """Add one measured position offset, in nats."""
        self.count += 1
        weight = 1 / min(self.count, self.memory)
        step = offset - self.mean
        self.mean += weight * step
        self._squares += weight * (step * (offset - self.mean) - self._squares)

    @property
    def spread(self) -> float:
        """Standard deviation."""
        return math.sqrt(max(self._squares, 0.0))


class PositionBias:
    """Offsets of one judge, by principle and by the ratio of the two lengths."""

    def __init__(self, config: SwapConfig) -> None:
        self._config = config
        self._offsets: dict[tuple[str, int], Offset] = defaultdict(Offset)
        self.asked = 0
        """Pairs seen."""
        self.asked_twice = 0

    def kind(self, item: Item, *, swapped: bool) -> tuple[str, int]:
        """The kind of a pair; pairs of one kind share an offset."""
        first, last = (len(answer) + 1 for answer in (item.answers[::-1] if swapped else item.answers))
        ratio = math.log2(first / last)
        return item.principle_id, sum(ratio > border for border in LENGTH_BUCKETS)

    def learn(self, kind: tuple[str, int], offset: float) -> None:
        """Learn from a pair of this kind that was asked in both orders."""
        if math.isfinite(offset):
            self._offsets[kind].add(offset)

    def is_known(self, kind: tuple[str, int]) -> bool:
        """Whether enough pairs of this kind were asked twice."""
        return self._offsets[kind].count >= self._config.warmup

    def offset(self, kind: tuple[str, int]) -> float:
        """Usual offset, nats."""
        return self._offsets[kind].mean

    def is_close(self, kind: tuple[str, int], margin: float) -> bool:
        """Whether the other order could reverse this one-order verdict (raw, without the offset)."""
        return abs(margin) < self._config.spreads * self._offsets[kind].spread


def shown_swapped(item: Item) -> bool:
    """Which order of a pair is asked first: decided by the texts alone, so that (x, y) and (y, x) ask the same question
    and get exactly opposite verdicts, and neither position is favoured."""
    return _digest(item, swapped=True) < _digest(item, swapped=False)


def pair_digest(item: Item) -> bytes:
    """Identifies a pair, the same for (x, y) and (y, x)."""
    return min(_digest(item, swapped=False), _digest(item, swapped=True))


def is_audited(item: Item, share: float) -> bool:
    """A random but repeatable share of all pairs, the same for (x, y) and (y, x)."""
    digest = hashlib.sha256(b"audit" + pair_digest(item)).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _digest(item: Item, *, swapped: bool) -> bytes:
    order = -1 if swapped else 1
    said = [text for message in item.conversation for text in (message.role, message.content)]
    # Only where an answer is cut, so that all other pairs keep the order of their cached verdicts.
    cut = ("\1", *("cut" if is_cut else "" for is_cut in item.cut[::order])) if any(item.cut) else ()
    whole = "\0".join((item.question, *said, "\1", *item.answers[::order], *cut))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()
