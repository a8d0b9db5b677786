"""The gate: accept, reject, or look at more prompts and then reject.

    decision = decide(figures_of(pairs, before, after), Thresholds())

Every figure is a harm: larger is worse. A model passes when the upper bound of every figure is below its threshold, and
fails when the lower bound of one is above. In between it is inconclusive: more prompts are looked at, and after the
last look it is rejected. All figures must pass, so no correction for their number is needed (intersection-union test,
Berger 1982); the error is divided over the looks. Where several copies may be tried, the error of 2.5 % is also divided
over them: half for the first, a quarter for the second and so on. P pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from compression.flips import BETA, brier, harm
from compression.gate.bounds import bounds, by_prompt
from compression.gate.thresholds import Thresholds
from compression.pairs import Pair, Scores

Floats = NDArray[np.float64]
Outcome = Literal["accept", "reject", "inconclusive"]
ALPHA = 0.025
LOOKS = ((1 / 3, 0.5), (2 / 3, 0.3), (1.0, 0.2))
"""Share of the prompts that is looked at, and of the error that is spent there."""
UNSIGNED = ("flips", "order")
"""Kinds of figures that count flips in either direction."""
MOST_LOST = 5.0
"""Mean margins that a pair counts as having lost at most."""
WRITTEN = "empty or repeating answers"
"""The figure about what a model writes."""
LEAST_TAG = 20
"""Prompts: a tag with fewer has no figure of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A harm measured on pairs."""

    name: str
    kind: str
    """The threshold that it is compared with: a field of Thresholds."""
    values_P: Floats
    prompts_P: tuple[str, ...]
    are_flips: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure at the last look."""

    name: str
    value: float
    low: float
    high: float
    threshold: float
    prompts: int
    outcome: Outcome
    p: float | None
    """Exact McNemar test of flips; None: no flips are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the gate says."""

    alpha: float
    """Largest probability that a model which loses a threshold is accepted."""

    verdict: Literal["accept", "reject"]
    reason: str
    look: int
    """At which look it was decided, from 1."""
    rows: tuple[Row, ...]


def figures_of(pairs: Sequence[Pair], before: Scores, after: Scores, beta: float = BETA) -> list[Figure]:
    """Figures about preferences: net and all flips, net flips of each tag, margins, Brier score. beta: as for
    `brier`."""
    prompts, harm_P = tuple(pair.prompt_id for pair in pairs), harm(before, after)
    scale = max(1e-12, float(np.abs(before.margin_P).mean()))
    found = [
        Figure(name="net flips", kind="net_flips", values_P=harm_P, prompts_P=prompts),
        Figure(name="flips", kind="flips", values_P=np.abs(harm_P), prompts_P=prompts),
        Figure(
            name="lost margin",
            kind="margin",
            # Bounded, so that one answer of many tokens cannot decide: what it lost beyond that is a flip.
            values_P=np.clip((before.margin_P - after.margin_P) / scale, -MOST_LOST, MOST_LOST),
            prompts_P=prompts,
            are_flips=False,
        ),
        Figure(
            name="Brier score",
            kind="brier",
            values_P=brier(after, beta) - brier(before, beta),
            prompts_P=prompts,
            are_flips=False,
        ),
    ]
    for tag in sorted({tag for pair in pairs for tag in pair.tags}):
        here = [number for number, pair in enumerate(pairs) if tag in pair.tags]
        names = tuple(prompts[number] for number in here)
        if len(set(names)) >= LEAST_TAG:
            found.append(Figure(name=f"net flips, {tag}", kind="worst_tag", values_P=harm_P[here], prompts_P=names))
    return found


def alpha_of(candidate: int, *, recover: bool) -> float:
    """The error that may be spent on a copy, counted from 1: all of it where there is no other.

    >>> alpha_of(2, recover=True)
    0.00625
    """
    return ALPHA * 2.0**-candidate if recover else ALPHA


def decide(
    figures: Sequence[Figure],
    limits: Thresholds,
    *,
    noise: Mapping[str, float] | None = None,
    alpha: float = ALPHA,
) -> Decision:
    """Look at more and more prompts until every figure passes or one fails.

    noise: of each kind, the harm of the aligned model against itself; a threshold is at least twice as much. alpha:
    largest probability that a model which loses a threshold is accepted.
    """
    rows: list[Row] = []
    for number, (share, spent) in enumerate(LOOKS, 1):
        rows = [_row(figure, limits, share, alpha * spent, (noise or {}).get(figure.kind, 0.0)) for figure in figures]
        bad = [row for row in rows if row.outcome == "reject"]
        if bad:
            return Decision(alpha=alpha, verdict="reject", reason=_said(bad), look=number, rows=tuple(rows))
        if all(row.outcome == "accept" for row in rows):
            reason = "the upper bound of every figure is below its threshold"
            return Decision(alpha=alpha, verdict="accept", reason=reason, look=number, rows=tuple(rows))
    unclear = [row for row in rows if row.outcome == "inconclusive"]
    return Decision(
        alpha=alpha,
        verdict="reject",
        reason=f"{_said(unclear)}: uncertain with all prompts; {_remedy(unclear)}, or keep more bits",
        look=len(LOOKS),
        rows=tuple(rows),
    )


def needed(discordant: float, threshold: float) -> int:
    """Prompts that a test of a net share needs for a power of 0.8 where nothing was lost.

    >>> needed(0.04, 0.02)
    785
    """
    return math.ceil((1.96 + 0.8416) ** 2 * discordant / threshold**2 - 1e-9)


def _row(figure: Figure, limits: Thresholds, share: float, alpha: float, noise: float) -> Row:
    threshold = max(getattr(limits, figure.kind), 2 * noise)
    order = sorted(set(figure.prompts_P), key=lambda name: hashlib.sha256(name.encode()).digest())
    seen = set(order[: max(2, math.ceil(share * len(order)))])
    here = np.array([name in seen for name in figure.prompts_P])
    values_P = figure.values_P[here]
    prompts = [name for name, is_here in zip(figure.prompts_P, here, strict=True) if is_here]
    found = bounds(by_prompt(values_P, prompts), alpha, are_flips=figure.are_flips)
    outcome: Outcome = "accept" if found.high < threshold else "reject" if found.low > threshold else "inconclusive"
    return Row(
        name=figure.name,
        value=found.value,
        low=found.low,
        high=found.high,
        threshold=threshold,
        prompts=found.prompts,
        outcome=outcome,
        p=_mcnemar(values_P) if figure.are_flips and figure.kind not in UNSIGNED else None,
    )


def _factor(rows: Sequence[Row]) -> float:
    """How many times as many prompts would probably decide, at most 20."""
    # Bounds shrink with the root of the number; half of the room between value and threshold is left for chance.
    found = [((row.high - row.value) / max(1e-9, 0.75 * (row.threshold - row.value))) ** 2 for row in rows]
    return min(20.0, max(1.1, *found)) if found else 1.1


def _remedy(rows: Sequence[Row]) -> str:
    """What would decide: prompts for figures about pairs, answers for the one about what the model writes."""
    of_pairs = [row for row in rows if row.name != WRITTEN]
    of_answers = [row for row in rows if row.name == WRITTEN]
    found = []
    if of_pairs:
        found.append(f"give pairs of {_factor(of_pairs):.1f} times as many prompts")
    if of_answers:
        wanted = math.ceil(_factor(of_answers) * of_answers[0].prompts)
        found.append(f"raise --answers to {wanted:,}, one for a prompt of the gate")
    return " and ".join(found)


def _mcnemar(values_P: Floats) -> float:
    lost, gained = int((values_P > 0).sum()), int((values_P < 0).sum())
    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def _said(rows: Sequence[Row]) -> str:
    worst = sorted(rows, key=lambda row: (row.threshold - row.value) / row.threshold)[:3]
    return "; ".join(
        f"{row.name} {row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}], threshold {row.threshold:g}" for row in worst
    )
