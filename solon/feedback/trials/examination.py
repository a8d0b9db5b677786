"""How often a judge prefers the right answer, by subset, as benchmarks of reward models report it.

A pair counts as right when the judge's verdict from both orders favours the same answer as gold. A missing verdict
counts as wrong in `accuracy` and is reported as `invalid`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from solon.feedback.interfaces import Judge
from solon.feedback.quality.intervals import Interval, wilson
from solon.feedback.trials.gold import GoldPair
from solon.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetResult:
    """One line of the examination."""

    subset: str
    pairs: int
    accuracy: Interval
    invalid: int
    ties: int
    consistent: Interval | None
    """Share of the pairs asked in both orders whose orders favour the same answer; None if there are none."""
    one_order: float | None
    """Accuracy if each pair had been asked only in the shown order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Results by subset, and over all pairs."""

    subsets: tuple[SubsetResult, ...]
    whole: SubsetResult
    mean_of_subsets: float
    """Mean with equal weight for every subset, as in leaderboards."""


async def examine(judge: Judge, pairs: Sequence[GoldPair]) -> tuple[Examination, list[list[Verdict]]]:
    """Ask about every pair that gold decides; returns the verdicts as well, by pair."""
    decided = [pair for pair in pairs if pair.is_decided]
    said = iter(await judge.judge([item for pair in decided for item in pair.items]))
    verdicts = [[next(said) for _ in pair.items] for pair in decided]
    by_subset: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(decided):
        by_subset[pair.subset or "all"].append(index)
    subsets = tuple(_result(name, [(decided[i], verdicts[i]) for i in found]) for name, found in by_subset.items())
    whole = _result("all pairs", list(zip(decided, verdicts, strict=True)))
    mean = sum(s.accuracy.value for s in subsets) / len(subsets)
    return Examination(subsets=subsets, whole=whole, mean_of_subsets=mean), verdicts


def _result(name: str, found: Sequence[tuple[GoldPair, list[Verdict]]]) -> SubsetResult:
    right = invalid = ties = agree = twice = one_right = 0
    for pair, said in found:
        margin = _mean([v.margin for v in said], pair.weights)
        if margin is None:
            invalid += 1
            continue
        ties += all(v.status == "tie" for v in said)
        right += (margin > 0) == (pair.target > 0.5) and margin != 0
        offsets = [v.position_offset for v in said]
        raws = [v.raw_margin for v in said]
        offset, raw = _mean(offsets, pair.weights), _mean(raws, pair.weights)
        if offset is not None and raw is not None:
            twice += 1
            agree += abs(raw) > abs(offset)
            one_right += (raw + offset > 0) == (pair.target > 0.5)
    return SubsetResult(
        subset=name,
        pairs=len(found),
        accuracy=wilson(right / len(found), len(found)),
        invalid=invalid,
        ties=ties,
        consistent=wilson(agree / twice, twice) if twice else None,
        one_order=one_right / twice if twice else None,
    )


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Weighted mean; None when a value is missing."""
    known = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None]
    if len(known) < len(values):
        return None
    return sum(w * v for w, v in known) / sum(w for w, _ in known)
