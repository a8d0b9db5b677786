"""The semantic cache: a verdict on a text stands for one on a text that says the same. Off by default.

    item ──▶ same prompt, question and order? ──▶ rule of words ──▶ near enough? ──▶ has it earned to be believed?

It is dangerous exactly here, where one word is the label (a query and its reversal have a cosine of 0.83 to 0.9997 on
nine encoders, GPTCache #694), so it must earn its keep: it serves nothing until enough verdicts that were asked anyway
agreed with what it would have said, it is checked on a share of its hits for ever after, and it turns itself off when
the upper bound of its error passes a limit. What it serves is marked, and its confidence is shrunk by its error.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from solon.feedback.judging import Item, Judge, Verdict
from solon.feedback.semantic_rule import is_verifiable, may_stand_for

Embed = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]
"""Texts -> unit rows [N, D]."""


class SemanticConfig(BaseModel):
    """`SemanticConfig(model="org/encoder")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    """Hugging Face encoder whose mean token vector is the embedding; empty: the semantic cache is off."""
    entries: int = Field(20_000, ge=1)
    """Verdicts that are remembered with their texts."""
    threshold: float = Field(0.98, gt=0, le=1)
    """Cosine that a fresh entry asks for; each entry's own rises where it was wrong."""
    max_error: float = Field(0.01, gt=0, lt=1)
    """Upper bound (95 %, Clopper-Pearson) of the share of wrong hits; above it, nothing is served."""
    wrong: float = Field(0.1, gt=0, le=1)
    """A hit was wrong when the probability was off by more than this, or the verdict was turned."""
    verify: float = Field(0.05, gt=0, le=1)
    """Share of the hits that is asked anyway, to keep the error known."""


@dataclass(slots=True)
class _Entry:
    item: Item
    verdict: Verdict
    vectors_AD: NDArray[np.float32]
    threshold: float


@dataclass(slots=True)
class SemanticCounts:
    """What it did. Observed: checked against a real verdict, served or not."""

    served: int = 0
    observed: int = 0
    wrong: int = 0
    refused_by_rule: int = 0


class SemanticJudge:
    """A `Judge` in front of another one. Never put it in front of gold, calibration, evaluation or audits."""

    def __init__(self, judge: Judge, embed: Embed, config: SemanticConfig, *, seed: int = 0) -> None:
        self.name = judge.name
        self._judge = judge
        self._embed = embed
        self._config = config
        self._rng = random.Random(seed)
        self._entries: OrderedDict[tuple[object, ...], list[_Entry]] = OrderedDict()
        self._size = 0
        self.counts = SemanticCounts()

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        eligible = [not any(is_verifiable(m.content) for m in item.conversation) for item in items]
        vectors = await self._vectors([item for item, ok in zip(items, eligible, strict=True) if ok])
        found = [self._nearest(item, vectors) if ok else None for item, ok in zip(items, eligible, strict=True)]
        believed = self.is_trusted
        served = [entry is not None and believed and self._rng.random() >= self._config.verify for entry in found]
        asked = iter(await self._judge.judge([item for item, hit in zip(items, served, strict=True) if not hit]))
        verdicts = []
        for item, entry, hit, ok in zip(items, found, served, eligible, strict=True):
            if hit and entry is not None:
                self.counts.served += 1
                verdicts.append(self._as_served(entry.verdict))
                continue
            verdict = next(asked)
            if entry is not None:
                self._learn(entry, verdict, self._similarity(entry, item, vectors))
            if ok and verdict.status.valid:
                self._remember(item, verdict, vectors)
            verdicts.append(verdict)
        return verdicts

    @property
    def error_bound(self) -> float:
        """Upper end of the 95 % Clopper-Pearson interval of the share of wrong hits."""
        return clopper_pearson(self.counts.wrong, self.counts.observed)

    @property
    def is_trusted(self) -> bool:
        """Whether hits are served. With nothing wrong it takes 299 observations to be trusted with 1 %."""
        return self.error_bound <= self._config.max_error

    async def _vectors(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
        texts = list(dict.fromkeys(answer for item in items for answer in item.answers))
        if not texts:
            return {}
        rows_ND = await self._embed(texts)
        return dict(zip(texts, rows_ND, strict=True))

    def _nearest(self, item: Item, vectors: dict[str, NDArray[np.float32]]) -> _Entry | None:
        """The closest entry about the same question that the rule allows and that is near enough."""
        best, best_similarity = None, -1.0
        for entry in self._entries.get(_place(item), ()):
            similarity = self._similarity(entry, item, vectors)
            if similarity < entry.threshold or similarity <= best_similarity:
                continue
            if all(map(may_stand_for, entry.item.answers, item.answers)):
                best, best_similarity = entry, similarity
            else:
                self.counts.refused_by_rule += 1
        return best

    def _similarity(self, entry: _Entry, item: Item, vectors: dict[str, NDArray[np.float32]]) -> float:
        """Of the two least alike answers."""
        return min(float(e @ vectors[answer]) for e, answer in zip(entry.vectors_AD, item.answers, strict=True))

    def _learn(self, entry: _Entry, verdict: Verdict, similarity: float) -> None:
        if verdict.margin is None or entry.verdict.margin is None:
            return
        said, true = _probability(entry.verdict.margin), _probability(verdict.margin)
        is_wrong = abs(said - true) > self._config.wrong or (said - 0.5) * (true - 0.5) < 0
        self.counts.observed += 1
        self.counts.wrong += is_wrong
        if is_wrong:  # this entry stands for nothing that is not nearer than that
            entry.threshold = min(1.0, similarity + (1 - similarity) / 2)

    def _remember(self, item: Item, verdict: Verdict, vectors: dict[str, NDArray[np.float32]]) -> None:
        place = _place(item)
        known = self._entries.setdefault(place, [])
        if any(entry.item.answers == item.answers for entry in known):
            return
        rows_AD = np.stack([vectors[answer] for answer in item.answers])
        known.append(_Entry(item, verdict, rows_AD, self._config.threshold))
        self._entries.move_to_end(place)
        self._size += 1
        while self._size > self._config.entries:
            _, oldest = self._entries.popitem(last=False)
            self._size -= len(oldest)

    def _as_served(self, verdict: Verdict) -> Verdict:
        """No questions were asked, and it is less sure than the verdict it repeats."""
        assert verdict.margin is not None
        p, error = _probability(verdict.margin), self.error_bound
        shrunk = p * (1 - error) + (1 - p) * error
        costs = {"questions": 0, "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cache_hits": 0}
        margin = math.log(shrunk / (1 - shrunk))
        return replace(verdict, margin=margin, source="semantic_cache", usd=0.0, prompt_digests=(), **costs)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def clopper_pearson(wrong: int, observed: int) -> float:
    """Upper end of the exact one-sided 95 % interval of a share."""
    from scipy.stats import beta

    return 1.0 if wrong == observed else float(beta.ppf(0.95, wrong + 1, observed - wrong))


def _place(item: Item) -> tuple[object, ...]:
    """Only verdicts on the same question about the same conversation are compared, order of answers included."""
    return item.task, item.question, item.polarity, item.scale, item.conversation


def _probability(margin: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, margin))))
