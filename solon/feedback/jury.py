"""Several judges asked about the same things. What they disagree on is worth a label from somebody better."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from solon.feedback.judging import Item, Judge, Verdict
from solon.records import Status

Method = Literal["mean", "median", "majority"]


class Jury:
    """Implements `Judge`. `Jury([a, b, c], method="median", min_jurors=2)`

    mean: weighted mean of the calibrated margins. median: their median, deaf to one loud juror. majority: the median
    of the margins on the side that more jurors favour; as many on both sides is a tie. A juror without a verdict is
    left out and counts for nothing; with fewer than `min_jurors` left there is no verdict.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        method: Method = "mean",
        min_jurors: int = 2,
        weights: Sequence[float] | None = None,
        tie_band: float = 0.1,
    ) -> None:
        assert len(judges) >= min_jurors >= 1, f"{len(judges)} jurors, {min_jurors} needed"
        self.name = "jury(" + ",".join(judge.name for judge in judges) + ")"
        self._judges = tuple(judges)
        self._method = method
        self._min_jurors = min_jurors
        self._weights = tuple(weights or [1.0] * len(judges))
        self._tie_band = tie_band
        assert len(self._weights) == len(judges), f"{len(judges)} jurors, {len(self._weights)} weights"

    async def poll(self, items: Sequence[Item]) -> list[list[Verdict]]:
        """What each juror says, item by item."""
        by_juror = await asyncio.gather(*(judge.judge(items) for judge in self._judges))
        return [list(said) for said in zip(*by_juror, strict=True)]

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        return [self.agree(said) for said in await self.poll(items)]

    def agree(self, said: Sequence[Verdict]) -> Verdict:
        """One verdict from those of all jurors about one item."""
        voices = [
            (verdict.margin, weight)
            for verdict, weight in zip(said, self._weights, strict=True)
            if verdict.margin is not None
        ]
        costs = {
            name: sum(getattr(verdict, name) for verdict in said)
            for name in ("questions", "prompt_tokens", "cached_tokens", "output_tokens", "cache_hits", "usd")
        }
        digests = tuple(digest for verdict in said for digest in verdict.prompt_digests)
        if len(voices) < self._min_jurors:
            failures = Counter(verdict.status for verdict in said if not verdict.status.valid)
            (status, _), *_ = failures.most_common(1)
            detail = f"{len(voices)} of {len(said)} jurors had a verdict, expected {self._min_jurors}"
            return Verdict(status=status, margin=None, judge=self.name, detail=detail, prompt_digests=digests, **costs)
        margin = self._margin(voices)
        status = Status.TIE if abs(margin) < self._tie_band else Status.OK
        return Verdict(
            status=status,
            margin=margin,
            raw_margin=margin,
            mass=min(verdict.mass for verdict in said if verdict.status.valid),
            judge=self.name,
            prompt_digests=digests,
            **costs,
        )

    def _margin(self, voices: Sequence[tuple[float, float]]) -> float:
        margins = [margin for margin, _ in voices]
        if self._method == "mean":
            return sum(m * w for m, w in voices) / sum(w for _, w in voices)
        if self._method == "median":
            return statistics.median(margins)
        pro, con = [m for m in margins if m > 0], [m for m in margins if m < 0]
        if len(pro) == len(con):
            return 0.0
        return statistics.median(pro if len(pro) > len(con) else con)


def disagreement(said: Sequence[Verdict]) -> float:
    """Variance of the jurors' margins, nats squared; 0 with fewer than two. What selection by disagreement ranks by."""
    margins = [verdict.margin for verdict in said if verdict.margin is not None]
    return statistics.pvariance(margins) if len(margins) > 1 else 0.0
