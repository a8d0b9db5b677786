"""Does a judge decide by the texts, or by their places? Counted while labels are made.

One order says margin + offset about the first answer, the other margin - offset: the place outweighs the texts where
the offset is the larger of the two, and then the two orders favour different answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from solon.feedback.quality.intervals import wilson
from solon.records import Label

BY_POSITION = 0.5
"""A judge without any bias whose verdicts are coins contradicts itself on half of the pairs. On more than half: the
place moves it further than the texts do."""

Pair = tuple[float, float | None, bool | None]
"""(raw margin, position offset, whether both orders agree) of a pair; the last two None where one order was asked."""


def pairs_of(labels: Iterable[Label]) -> tuple[Pair, ...]:
    """Of the valid comparisons among them."""
    return tuple(
        (label.verdict.raw_margin, label.verdict.position_offset, label.verdict.consistent)
        for label in labels
        if label.task == "pairwise" and label.status.valid and label.verdict.raw_margin is not None
    )


@dataclass(slots=True)
class PositionCount:
    """`count.add(pairs_of(labels))`, then `count.warning()`."""

    pairs: int = 0
    """Comparisons of which it is known what decided."""
    by_position: int = 0
    """Those whose place weighs more than their texts: the two orders disagree. Where one order was asked: would, with
    the usual offset."""
    twice: int = 0
    offset_sum: float = 0.0
    margin_sum: float = 0.0

    def add(self, pairs: Iterable[Pair]) -> None:
        """Add comparisons: (raw margin, position offset, consistent) of each."""
        for raw, offset, agree in pairs:
            if offset is not None:
                self.twice += 1
                self.offset_sum += offset
            if agree is None and (offset is not None or not self.twice):
                continue  # an exact tie; or nothing is known of the offset yet
            self.pairs += 1
            self.margin_sum += abs(raw)
            self.by_position += abs(raw) < abs(self.offset) if agree is None else not agree

    @property
    def offset(self) -> float:
        """Usual offset, nats; above 0 the answer shown first is favoured."""
        return self.offset_sum / self.twice if self.twice else 0.0

    def warning(self) -> str | None:
        """A sentence for people where the place decides on more than half of the pairs, beyond doubt: the lower end of
        the 95 % interval is above one half. 4 pairs are enough where all say so."""
        if not self.pairs:
            return None
        share = self.by_position / self.pairs
        if wilson(share, self.pairs).low <= BY_POSITION:
            return None
        return (
            f"the judge decides by position: on {share:.0%} of {self.pairs:,} comparisons the place of an answer "
            f"weighs more than its text (coins: {BY_POSITION:.0%}), mean offset {self.offset:+.2f} nats against a mean "
            f"margin of {self.margin_sum / self.pairs:.2f}; these labels say little: try another or a larger judge, or "
            "another feedback.template, and measure it with `solon judges test`"
        )

    def state(self) -> dict[str, float]:
        """As JSON: `PositionCount(**state)` continues from it."""
        return asdict(self)
