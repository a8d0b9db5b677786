"""Whether a judge decides by the texts or by their positions. Counted while labels are made.

One order gives margin + offset for the first answer, the other margin - offset: position outweighs the texts where the
offset is the larger of the two, and then the two orders favour different answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from solon.feedback.quality.intervals import wilson
from solon.records import Label

BY_POSITION = 0.5
"""An unbiased judge with random verdicts contradicts itself on half of the pairs. On more than half, position has more
influence than the texts."""

Pair = tuple[float, float | None, bool | None]
"""(raw margin, position offset, whether both orders agree) of a pair; the last two are None if one order was asked."""


def pairs_of(labels: Iterable[Label]) -> tuple[Pair, ...]:
    """The valid comparisons among the labels."""
    return tuple(
        (label.verdict.raw_margin, label.verdict.position_offset, label.verdict.consistent)
        for label in labels
        if label.task == "pairwise" and label.status.valid and label.verdict.raw_margin is not None
    )


@dataclass(slots=True)
class PositionCount:
    """`count.add(pairs_of(labels))`, then `count.warning()`."""

    pairs: int = 0
    """Comparisons for which the deciding factor is known."""
    by_position: int = 0
    """Comparisons where position outweighs the texts: the two orders disagree, or would, given the usual offset, if
    only one was asked."""
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
                continue  # an exact tie, or the offset is not known yet
            self.pairs += 1
            self.margin_sum += abs(raw)
            self.by_position += abs(raw) < abs(self.offset) if agree is None else not agree

    @property
    def offset(self) -> float:
        """Usual offset, nats; above 0 the answer shown first is favoured."""
        return self.offset_sum / self.twice if self.twice else 0.0

    def warning(self) -> str | None:
        """A warning if position decides significantly more than half of the pairs: the lower end of the 95 % interval
        is above one half. 4 pairs suffice if all agree."""
        if not self.pairs:
            return None
        share = self.by_position / self.pairs
        if wilson(share, self.pairs).low <= BY_POSITION:
            return None
        return (
            f"the judge decides by position: on {share:.0%} of {self.pairs:,} comparisons the place of an answer "
            f"weighs more than its text (coins: {BY_POSITION:.0%}), mean offset {self.offset:+.2f} nats against a mean "
            f"margin of {self.margin_sum / self.pairs:.2f}; these labels carry little information: try another or a "
            "larger judge, or another feedback.template, and measure it with `solon judges test`"
        )

    def state(self) -> dict[str, float]:
        """As JSON: `PositionCount(**state)` continues from it."""
        return asdict(self)
