"""The semantic cache: a verdict on a text is reused for a text with the same meaning. Off by default.

    item ──▶ same prompt, question and order? ──▶ near enough for this entry? ──▶ rule of words ──▶ is it trusted?

Reuse is dangerous where one word decides the label (a query and its reversal have a cosine of 0.83 to 0.9997 on nine
encoders, GPTCache #694), so it must be earned twice. An entry serves only itself until a real verdict on a near
duplicate agreed with it, and then only texts that are at least as near (as in vCache, arXiv:2502.03771). And no entry
serves until enough verdicts that were asked anyway agreed with the cached ones. A share of the hits is always checked;
when the upper bound of the error among the last thousand exceeds a limit, nothing is served. Served verdicts are
marked, and their confidence is reduced by the error.

Items whose exact answers were judged before are left to the exact cache: they would prove nothing about near
duplicates.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from solon.feedback.caches.semantic_rule import is_verifiable, may_stand_for
from solon.feedback.interfaces import Item, Judge
from solon.files.marks import ModelName
from solon.verdicts import Verdict

CHECKED = 1000
"""Number of latest checked hits over which the error is measured, so that a changing policy is noticed."""
_log = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]
"""Texts -> unit rows [N, D]."""


class SemanticConfig(BaseModel):
    """`SemanticConfig(model="org/encoder")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = ""
    """Hugging Face encoder whose mean token vector is the embedding; empty: the semantic cache is off."""
    entries: int = Field(20_000, ge=1)
    """Verdicts kept with their texts."""
    threshold: float = Field(0.98, gt=0, le=1)
    """Least cosine of a near duplicate; each entry's own threshold is at or above it, as learned."""
    max_error: float = Field(0.01, gt=0, lt=0.5)
    """Upper bound (95 %, Clopper-Pearson) of the share of wrong hits; above it, nothing is served."""
    wrong: float = Field(0.1, gt=0, le=1)
    """A hit counts as wrong when the probability was off by more than this, or the verdict was reversed."""
    verify: float = Field(0.05, gt=0, le=1)
    """Share of hits that is asked anyway, to measure the error."""


@dataclass(slots=True)
class _Entry:
    """A verdict, and how near a duplicate must be to use it."""

    item: Item
    verdict: Verdict
    vectors_AD: NDArray[np.float32]
    agreed: float = math.inf
    """Least cosine at which a real verdict agreed since the last disagreement; infinite: none did."""
    differed: float = -math.inf
    """Greatest cosine at which a real verdict disagreed."""

    def stands_at(self, cosine: float) -> bool:
        return cosine >= self.agreed and cosine > self.differed

    def learn(self, cosine: float, *, is_wrong: bool) -> None:
        if is_wrong:
            self.differed, self.agreed = max(self.differed, cosine), math.inf
        elif cosine > self.differed:
            self.agreed = min(self.agreed, cosine)


@dataclass(slots=True)
class SemanticCounts:
    """Counts since the start."""

    served: int = 0
    observed: int = 0
    """Hits that were checked against a real verdict, and not served."""
    wrong: int = 0
    """Wrong ones among them."""
    refused_by_rule: int = 0


class SemanticJudge:
    """A `Judge` in front of another one. Never use it for gold, calibration, evaluation or audits."""

    def __init__(self, judge: Judge, embed: Embed, config: SemanticConfig, *, seed: int = 0) -> None:
        self.name = judge.name
        self._judge = judge
        self._embed = embed
        self._config = config
        self._rng = random.Random(seed)
        self._entries: OrderedDict[tuple[object, ...], list[_Entry]] = OrderedDict()
        self._size = 0
        self._was_wrong: deque[bool] = deque(maxlen=CHECKED)
        self.counts = SemanticCounts()

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items, from the cache where it has a close enough item."""
        eligible = [_is_eligible(item) for item in items]
        vectors = await self._vectors([item for item, ok in zip(items, eligible, strict=True) if ok])
        found = [self._nearest(item, vectors) if ok else None for item, ok in zip(items, eligible, strict=True)]
        served = [hit is not None and self._is_served(*hit) for hit in found]
        asked = iter(await self._judge.judge([item for item, hit in zip(items, served, strict=True) if not hit]))
        verdicts = []
        for item, hit, is_served, ok in zip(items, found, served, eligible, strict=True):
            if is_served and hit is not None:
                self.counts.served += 1
                verdicts.append(self._as_served(hit[0].verdict))
                continue
            verdict = next(asked)
            if ok and _is_repeatable(verdict) and (hit is None or self._learn(*hit, verdict)):
                self._remember(item, verdict, vectors)
            verdicts.append(verdict)
        return verdicts

    @property
    def error_bound(self) -> float:
        """Upper end of the one-sided 95 % Clopper-Pearson interval of the share of wrong hits, among the latest
        ones."""
        return clopper_pearson(sum(self._was_wrong), len(self._was_wrong))

    @property
    def is_trusted(self) -> bool:
        """Whether hits are served. Without a wrong hit, a limit of 1 % needs 299 checked hits."""
        return self.error_bound <= self._config.max_error

    def _is_served(self, entry: _Entry, cosine: float) -> bool:
        return entry.stands_at(cosine) and self.is_trusted and self._rng.random() >= self._config.verify

    async def _vectors(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
        texts = list(dict.fromkeys(answer for item in items for answer in item.answers))
        if not texts:
            return {}
        rows_ND = await self._embed(texts)
        return dict(zip(texts, rows_ND, strict=True))

    def _nearest(self, item: Item, vectors: dict[str, NDArray[np.float32]]) -> tuple[_Entry, float] | None:
        """The closest entry about the same question that the rule allows, and its cosine."""
        best: tuple[_Entry, float] | None = None
        for entry in self._entries.get(_place(item), ()):
            if entry.item.answers == item.answers:
                return None
            cosine = _cosine(entry, item, vectors)
            if cosine < self._config.threshold or (best is not None and cosine <= best[1]):
                continue
            if all(map(may_stand_for, entry.item.answers, item.answers)):
                best = entry, cosine
            else:
                self.counts.refused_by_rule += 1
        return best

    def _learn(self, entry: _Entry, cosine: float, verdict: Verdict) -> bool:
        """Learn from a real verdict on a near duplicate. Returns whether it differs, and so needs an entry of its
        own."""
        assert entry.verdict.margin is not None
        assert verdict.margin is not None
        said, true = _probability(entry.verdict.margin), _probability(verdict.margin)
        is_wrong = abs(said - true) > self._config.wrong or (said - 0.5) * (true - 0.5) < 0
        if entry.stands_at(cosine):
            was_trusted = self.is_trusted
            self.counts.observed += 1
            self.counts.wrong += is_wrong
            self._was_wrong.append(is_wrong)
            if was_trusted and not self.is_trusted:
                wrong, checked = sum(self._was_wrong), len(self._was_wrong)
                _log.warning("the semantic cache is off: %d of its last %d checked hits were wrong", wrong, checked)
        entry.learn(cosine, is_wrong=is_wrong)
        return is_wrong

    def _remember(self, item: Item, verdict: Verdict, vectors: dict[str, NDArray[np.float32]]) -> None:
        place = _place(item)
        known = self._entries.setdefault(place, [])
        if any(entry.item.answers == item.answers for entry in known):
            return
        known.append(_Entry(item, verdict, np.stack([vectors[answer] for answer in item.answers])))
        self._entries.move_to_end(place)
        self._size += 1
        while self._size > self._config.entries:
            _, oldest = self._entries.popitem(last=False)
            self._size -= len(oldest)

    def _as_served(self, verdict: Verdict) -> Verdict:
        """The cached verdict without costs, since no questions were asked, and with lower confidence."""
        assert verdict.margin is not None
        p, error = _probability(verdict.margin), self.error_bound
        shrunk = p * (1 - error) + (1 - p) * error
        costs = {"questions": 0, "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cache_hits": 0}
        margin = math.log(shrunk / (1 - shrunk))
        return replace(verdict, margin=margin, source="semantic_cache", usd=0.0, prompt_digests=(), **costs)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def clopper_pearson(wrong: int, observed: int) -> float:
    """Upper end of the exact one-sided 95 % interval of a share."""
    from scipy.stats import beta

    return 1.0 if wrong == observed else float(beta.ppf(0.95, wrong + 1, observed - wrong))


def _place(item: Item) -> tuple[object, ...]:
    """Verdicts are compared only for the same question, conversation and order of answers."""
    return item.task, item.question, item.polarity, item.scale, item.conversation, item.cut


def _is_eligible(item: Item) -> bool:
    """Excludes prompts where one character decides, and pairs so alike that only their order distinguishes them."""
    if any(is_verifiable(message.content) for message in item.conversation):
        return False
    return item.task != "pairwise" or not may_stand_for(*item.answers)


def _is_repeatable(verdict: Verdict) -> bool:
    """Whether it is the judge's own verdict. A proxy's is not, nor a margin corrected for its sampling probability:
    that one is right on average over many items, not for this one."""
    return verdict.margin is not None and verdict.source in ("judge", "exact_cache") and verdict.propensity == 1


def _cosine(entry: _Entry, item: Item, vectors: dict[str, NDArray[np.float32]]) -> float:
    """The lower cosine of the answers, rounded to four places, so that rounding errors do not decide."""
    return min(round(float(e @ vectors[a]), 4) for e, a in zip(entry.vectors_AD, item.answers, strict=True))


def _probability(margin: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, margin))))
