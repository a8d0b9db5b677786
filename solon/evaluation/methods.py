"""Methods compared over seeds: how much each improves a policy, how surely, and at what cost.

S seeds, P prompts. A change is the score of a prompt after the method less its score before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solon.feedback.quality.intervals import Interval

RESAMPLES = 4000
LEVEL = 0.95
MOST_DEGENERATE = 0.05
"""Share of answers."""
Changes = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one seed of a method."""

    human_labels: int
    """Rows of data sets that the user gave."""
    ai_labels: int
    """Verdicts of judges."""
    seconds: float
    """Of the machine, evaluation left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """A line of the comparison."""

    name: str
    change: Interval
    """Of the mean score, over prompts and seeds."""
    by_seed: tuple[float, ...]
    cost: Cost
    """Mean over seeds."""
    kl: float | None
    """From the start, nats an answer, mean over seeds; None: not measured."""
    degenerate: float
    """Share of degenerate answers."""
    words: float
    """Of an answer."""
    is_off_budget: bool = False
    """Its cost differs from the budget by more than was allowed."""

    @property
    def worst(self) -> float:
        """The worst seed's change."""
        return min(self.by_seed)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else math.nan


def over_seeds(changes_SP: Changes, *, seed: int = 0) -> Interval:
    """The mean change with the wider of two 95 % intervals: a bootstrap over seeds and prompts, and Student's t over
    the means of seeds. With few seeds each is too narrow in some cases (Bouthillier et al. 2021). With one seed it is
    the bootstrap over prompts, which says nothing of other seeds. Prompts without a value are NaN."""
    changes_SP = changes_SP[:, ~np.isnan(changes_SP).all(axis=0)]
    seeds, prompts = changes_SP.shape
    means_S = np.nanmean(changes_SP, axis=1)
    rng = np.random.default_rng(seed)
    drawn = [
        np.nanmean(changes_SP[rng.integers(0, seeds, seeds)][:, rng.integers(0, prompts, prompts)])
        for _ in range(RESAMPLES)
    ]
    low, high = (float(value) for value in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    value = float(means_S.mean())
    if seeds > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, seeds - 1) * means_S.std(ddof=1) / math.sqrt(seeds))
        low, high = min(low, value - half), max(high, value + half)
    return Interval(value=value, low=low, high=high, pairs=prompts)


def advice(rows: Sequence[MethodRow], changes: Mapping[str, Changes]) -> list[str]:
    """Sentences that follow from the numbers. changes: [S, P] by method, of the same seeds and prompts."""
    best = max(rows, key=lambda row: row.change.value)
    gain = f"{best.change.value:+.3f} ({best.change.low:+.3f} to {best.change.high:+.3f})"
    if best.change.low > 0:
        said = [f"{best.name} improves the policy most: {gain}."]
    else:
        said = [f"No method is shown to improve the policy; {best.name} has the highest figure: {gain}."]
    if len(best.by_seed) == 1:
        said.append("One seed says nothing of the next one: run at least three before you choose.")
    said += _against_the_best(best, rows, changes)
    open_ = [row.name for row in rows if row is not best and row.change.low <= 0 <= row.change.high]
    if open_:
        said.append(f"Of {_listed(open_)} no improvement is shown: the interval holds 0.")
    if worse := [row.name for row in rows if row.change.high < 0]:
        said.append(f"{_listed(worse)} made the policy worse.")
    if shaky := [row.name for row in rows if row.worst < 0 < row.change.value]:
        said.append(f"A seed of {_listed(shaky)} ended worse than the start.")
    if broken := [row.name for row in rows if row.degenerate > MOST_DEGENERATE]:
        said.append(
            f"More than 5 % of the answers of {_listed(broken)} are degenerate: read them before anything else."
        )
    if missed := [row.name for row in rows if row.is_off_budget]:
        said.append(f"{_listed(missed)} missed the budget: compare its figures with its seconds.")
    return said


def _against_the_best(best: MethodRow, rows: Sequence[MethodRow], changes: Mapping[str, Changes]) -> list[str]:
    """Which others may be as good, which are not, and what speaks for one of those that may."""
    others = [row for row in rows if row is not best]
    equal = [row for row in others if over_seeds(changes[best.name] - changes[row.name]).low <= 0]
    if not others:
        return []
    if not equal:
        return ["All others are worse, by more than chance explains."]
    alike, said = [best, *equal], [f"{_listed([row.name for row in equal])} cannot be told from it at this size."]
    cheapest = min(alike, key=lambda row: row.cost.seconds)
    if cheapest is not best:
        said.append(
            f"Of these {cheapest.name} is the cheapest: {cheapest.cost.seconds:.0f} s, {best.name} "
            f"{best.cost.seconds:.0f} s."
        )
    if without := [row.name for row in alike if not row.cost.ai_labels]:
        said.append(f"Without AI labels: {_listed(without)}.")
    known = [row for row in alike if row.kl is not None]
    if len(known) > 1:
        near = min(known, key=lambda row: row.kl or 0.0)
        said.append(f"{near.name} stays closest to the start: {near.kl:.2f} nats an answer.")
    return said


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
