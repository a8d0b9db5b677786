"""A small judge first, a large one where the small one is unsure: most of the quality at a fraction of the cost.

    items ──▶ judge 0 ──sure──▶ verdict
                 └──unsure, or no verdict──▶ judge 1 ──▶ …

How unsure is too unsure is not guessed: `fit_threshold` takes gold pairs and returns the largest doubt at which the
error among the verdicts that are accepted stays below a bound with a stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from solon.errors import InputError
from solon.feedback.judging import Item, Judge, Verdict

LEAST_PAIRS = 100


class CascadeConfig(BaseModel):
    """`CascadeConfig(judge="org/large-judge", doubt=0.6)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: str = ""
    """The judge that is asked where the first one is unsure; empty: no cascade."""
    doubt: float = Field(0.5, ge=0, le=1)
    """Bits of doubt up to which the first judge's verdict stands; `solon judges cascade` fits it on gold pairs."""


class Cascade:
    """Implements `Judge`, made of judges, smallest first. `Cascade([small, large], doubts=[0.5])`

    doubts: for each judge but the last, the bits of doubt up to which its verdict stands.
    """

    def __init__(self, judges: Sequence[Judge], doubts: Sequence[float]) -> None:
        assert len(doubts) == len(judges) - 1 >= 1, f"{len(judges)} judges, {len(doubts)} thresholds"
        self.name = "+".join(judge.name for judge in judges)
        self._judges = tuple(judges)
        self._doubts = (*doubts, math.inf)
        self.asked = [0] * len(judges)
        """Items that reached each level."""

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        found: list[Verdict | None] = [None] * len(items)
        waiting = list(range(len(items)))
        for level, (judge, limit) in enumerate(zip(self._judges, self._doubts, strict=True)):
            if not waiting:
                break
            self.asked[level] += len(waiting)
            verdicts = await judge.judge([items[i] for i in waiting])
            is_last = level == len(self._judges) - 1
            unsure = []
            for index, verdict in zip(waiting, verdicts, strict=True):
                earlier = found[index]
                found[index] = replace(verdict, level=level) if earlier is None else _after(earlier, verdict, level)
                if not is_last and (not verdict.status.valid or doubt(verdict) > limit):
                    unsure.append(index)
            waiting = unsure
        return [verdict for verdict in found if verdict is not None]


def doubt(verdict: Verdict) -> float:
    """Bits of doubt in a valid verdict, between 0 and 1.

    Where both orders were asked: the mean entropy of what the two say (bidirectional preference entropy), so that a
    judge that is sure twice of opposite things is in doubt. Otherwise the entropy of the calibrated margin.
    """
    assert verdict.margin is not None
    if verdict.position_offset is None or not verdict.raw_margin:
        return entropy(verdict.margin)
    scale = verdict.margin / verdict.raw_margin
    offset = verdict.position_offset * scale
    p = (_probability(verdict.margin + offset) + _probability(verdict.margin - offset)) / 2
    return max(entropy(verdict.margin), _entropy_of(p))


def entropy(margin: float) -> float:
    """Bits of doubt of a verdict with this log-odds."""
    return _entropy_of(_probability(margin))


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How much doubt may be accepted, and what that promises."""

    doubt: float
    coverage: float
    """Share of the pairs that the first judge decides alone."""
    error: float
    """Of the accepted ones, on the pairs it was fitted on."""
    bound: float
    """The error is below this with probability 1 - delta."""


def fit_threshold(doubts_N: ArrayLike, wrong_N: ArrayLike, *, alpha: float, delta: float = 0.05) -> Threshold:
    """The largest doubt at which the share of wrong verdicts among the accepted ones is below alpha.

    Fixed-sequence testing (Angelopoulos et al. 2021, Learn then Test): thresholds are tried from the strictest on, each
    with the exact binomial bound (Clopper-Pearson) at level delta, and the first one that fails ends it; so the promise
    holds although many thresholds were looked at. It holds for pairs like those given: as the policy moves, fit anew.
    Raises InputError for too few pairs, or when not even the surest verdicts are good enough.
    """
    from scipy.stats import beta

    doubts: NDArray[np.float64] = np.asarray(doubts_N, float)
    wrong: NDArray[np.bool_] = np.asarray(wrong_N, bool)
    if len(doubts) < LEAST_PAIRS:
        raise InputError(
            f"got {len(doubts)} gold pairs to fit a cascade's threshold on, expected at least {LEAST_PAIRS}"
        )
    order = np.argsort(doubts, kind="stable")
    doubts, errors = doubts[order], np.cumsum(wrong[order])
    best: Threshold | None = None
    # A grid fixed beforehand, by share of the pairs; it starts where alpha allows ten errors, for with fewer one
    # unlucky pair would end the search at its first step.
    for share in np.linspace(min(1.0, max(0.05, 10 / (alpha * len(doubts)))), 1.0, 20):
        last = int(np.searchsorted(doubts, doubts[math.ceil(share * len(doubts)) - 1], side="right"))
        k = int(errors[last - 1])
        bound = 1.0 if k == last else float(beta.ppf(1 - delta, k + 1, last - k))
        if bound > alpha:
            break
        best = Threshold(doubt=float(doubts[last - 1]), coverage=last / len(doubts), error=k / last, bound=bound)
    if best is None:
        raise InputError(
            f"no threshold keeps the first judge's error below {alpha:g} with confidence {1 - delta:g} on "
            f"{len(doubts)} pairs; allow more error, give more pairs, or take a better first judge"
        )
    return best


def _after(earlier: Verdict, verdict: Verdict, level: int) -> Verdict:
    """The later verdict, with the costs of both. One that failed leaves a valid earlier one standing."""
    kept, level = (verdict, level) if verdict.status.valid or not earlier.status.valid else (earlier, earlier.level)
    return replace(
        kept,
        level=level,
        questions=earlier.questions + verdict.questions,
        prompt_tokens=earlier.prompt_tokens + verdict.prompt_tokens,
        cached_tokens=earlier.cached_tokens + verdict.cached_tokens,
        output_tokens=earlier.output_tokens + verdict.output_tokens,
        cache_hits=earlier.cache_hits + verdict.cache_hits,
        usd=earlier.usd + verdict.usd,
    )


def _probability(margin: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, margin))))


def _entropy_of(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
