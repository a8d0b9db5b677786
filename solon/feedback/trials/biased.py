"""A judge with a known fault that sets in after some items, to measure how soon a monitor finds it.

    judge = BiasedJudge(honest, "length", strength=1.5, onset=4000)

Each bias is a known one of judges: they favour long answers, stock phrases, the first position, or flattery; or they
err at random (CHERRL, arXiv:2606.04923). An invalid verdict stays unchanged: a fault must not turn a failed call into
an answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from solon.feedback.interfaces import Item, Judge
from solon.verdicts import Status, Verdict

Bias = Literal["length", "phrase", "first_position", "flattery", "random_flips"]
BIASES: tuple[Bias, ...] = ("length", "phrase", "first_position", "flattery", "random_flips")
USUAL_WORDS = 16
"""Length in words at which a single answer is neither favoured nor penalised by a length bias."""
PHRASE = "as an expert"
FLATTERIES = ("you are right", "great question", "what a good question", "you are so clever")


class BiasedJudge:
    """Implements `Judge` around another one.

    strength: nats per doubling of the words (length), nats for an answer with the phrase or flattery (phrase,
    flattery), nats for the answer in the first position (first_position), or the share of reversed verdicts
    (random_flips). onset: number of items judged honestly before the fault begins.
    """

    def __init__(
        self,
        judge: Judge,
        bias: Bias,
        *,
        strength: float,
        onset: int = 0,
        phrase: str = PHRASE,
        flatteries: Sequence[str] = FLATTERIES,
        tie_band: float = 0.1,
        seed: int = 0,
    ) -> None:
        if bias not in BIASES:
            raise ValueError(f"bias: got {bias!r}, expected one of {', '.join(BIASES)}")
        if not math.isfinite(strength) or (bias == "random_flips" and not 0 <= strength <= 1):
            raise ValueError(f"strength: got {strength} for {bias}, expected finite nats, or a share from 0 to 1")
        self.name = f"{judge.name}+{bias}"
        self.bias, self.strength, self.onset = bias, strength, onset
        self.seen = 0
        """Items judged so far."""
        self._judge = judge
        self._phrases = tuple(flatteries) if bias == "flattery" else (phrase,)
        self._tie_band = tie_band
        self._seed = seed

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`; the bias is added to the margins."""
        verdicts = await self._judge.judge(items)
        first = self.seen
        self.seen += len(items)
        return [
            self._distort(item, verdict) if first + place >= self.onset else verdict
            for place, (item, verdict) in enumerate(zip(items, verdicts, strict=True))
        ]

    def _distort(self, item: Item, verdict: Verdict) -> Verdict:
        if verdict.margin is None:
            return verdict
        if self.bias == "random_flips":
            margin = -verdict.margin if _draw(self._seed, item) < self.strength else verdict.margin
        else:
            margin = verdict.margin + self.strength * self._pull(item)
        if margin == verdict.margin:
            return verdict
        # The fault is added on top, so the raw margin and the order are unknown.
        status = Status.TIE if abs(margin) < self._tie_band else Status.OK
        return replace(verdict, status=status, margin=margin, raw_margin=None, consistent=None, judge=self.name)

    def _pull(self, item: Item) -> float:
        """How much the fault favours the answer, or the first one of two, in units of `strength`."""
        if self.bias == "first_position":
            return 1.0 if item.task == "pairwise" else 0.0
        if item.task == "pairwise":
            return self._liking(item.answers[0]) - self._liking(item.answers[1])
        return self._liking(item.answers[0]) - (math.log2(1 + USUAL_WORDS) if self.bias == "length" else 0.0)

    def _liking(self, text: str) -> float:
        if self.bias == "length":
            return math.log2(1 + len(text.split()))
        lowered = text.lower()
        return 1.0 if any(phrase.lower() in lowered for phrase in self._phrases) else 0.0


def _draw(seed: int, item: Item) -> float:
    """Uniform in [0, 1); the same item always errs in the same way, as for a judge at temperature zero."""
    said = [text for message in item.conversation for text in (message.role, message.content)]
    whole = "\0".join((str(seed), item.principle_id, item.question, *said, "\1", *item.answers))
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
