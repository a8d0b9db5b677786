"""Whether a small judge may replace the large one that taught it.

It will read the policy's answers, so it is examined on those: agreement on answers of other models says little about
it. The caller names the author of the pairs; pairs of other authors are refused, as are pairs that the student was
taught.

    decision = accept(student_verdicts, teacher_verdicts, held_out, taught=report.taught)
    decision.accepted, decision.agreement, decision.low, decision.reason
"""

# N pairs

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from solon.errors import InputError
from solon.feedback.panels.cascade import upper_bound
from solon.feedback.quality.intervals import Floats, mean
from solon.verdicts import Verdict

Origin = Literal["policy", "other_model", "corpus", "constructed"]
"""The author of a pair's answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPair:
    """A pair that the student has never seen. HeldOutPair(origin="policy", prompt_id="3f2a", target=1.0)"""

    origin: Origin
    prompt_id: str
    """Pairs of one prompt are not independent of each other."""
    target: float | None = None
    """Gold: probability that the first answer is better; None if there is none."""


class AcceptConfig(BaseModel):
    """`AcceptConfig(min_agreement=0.9, max_lost=0.02)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_agreement: float = Field(0.9, gt=0.5, lt=1)
    """The student must agree with its teacher on at least this share of the pairs, at the lower confidence bound."""
    max_lost: float = Field(0.02, gt=0, lt=1)
    """Agreement with gold that the student may lose to the teacher, at the upper confidence bound."""
    delta: float = Field(0.05, gt=0, lt=0.5)
    """Error probability of either bound."""
    fewest_pairs: int = Field(200, ge=1)
    """Least number of decided pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Result of a student's examination."""

    accepted: bool
    reason: str
    """The reason in one sentence."""
    agreement: float
    """Share of pairs on which the student agrees with its teacher; a missing verdict does not agree."""
    low: float
    """Its lower confidence bound, compared with `threshold`."""
    threshold: float
    pairs: int
    """Pairs that the teacher decides."""
    invalid: float
    """Share of them without a verdict of the student."""
    gold_pairs: int
    student_gold: float | None
    """Agreement with gold on the pairs that have it; None without any."""
    teacher_gold: float | None
    lost_high: float | None
    """Upper confidence bound of the student's loss to its teacher against gold."""


def accept(
    student: Sequence[Verdict],
    teacher: Sequence[Verdict],
    pairs: Sequence[HeldOutPair],
    config: AcceptConfig | None = None,
    *,
    taught: Set[str] = frozenset(),
    seed: int = 0,
) -> Acceptance:
    """Examine a student against its teacher, and both against gold if available.

    student, teacher: verdicts on the same pairs. taught: digests of the student's training questions. Bounds are
    one-sided: the lower of Clopper and Pearson's and of a bootstrap over prompts, since pairs of one prompt are
    correlated. Raises InputError for pairs that the policy did not write or that were taught, and for too few pairs.
    """
    config = config or AcceptConfig()
    _require_fair(student, teacher, pairs, taught)
    decided = [n for n, verdict in enumerate(teacher) if _side(verdict) != 0]
    if len(decided) < config.fewest_pairs:
        raise InputError(
            f"got {len(decided)} pairs that the teacher decides ({len(pairs)} in all), expected at least "
            f"{config.fewest_pairs}; let the policy answer more prompts"
        )
    agree_N = np.array([float(_side(student[n]) == _side(teacher[n])) for n in decided])
    low = _lower_bound(agree_N, [pairs[n].prompt_id for n in decided], config.delta, seed)
    gold = [(n, target) for n, pair in enumerate(pairs) if (target := pair.target) is not None and target != 0.5]
    student_N, teacher_N = (
        np.array([float(_side(said[n]) == (1 if target > 0.5 else -1)) for n, target in gold])
        for said in (student, teacher)
    )
    lost_high = _lost(student_N, teacher_N, [pairs[n].prompt_id for n, _ in gold], config.delta, seed)
    failures = []
    if low < config.min_agreement:
        failures.append(f"agreement with the teacher may be as low as {low:.3f}, below {config.min_agreement:g}")
    if lost_high is not None and lost_high > config.max_lost:
        failures.append(f"agreement with gold may be {lost_high:.3f} below the teacher's, above {config.max_lost:g}")
    return Acceptance(
        accepted=not failures,
        reason="; ".join(failures) or f"agreement with the teacher is at least {low:.3f} on what the policy writes",
        agreement=float(agree_N.mean()),
        low=low,
        threshold=config.min_agreement,
        pairs=len(decided),
        invalid=sum(not student[n].status.valid for n in decided) / len(decided),
        gold_pairs=len(gold),
        student_gold=float(student_N.mean()) if gold else None,
        teacher_gold=float(teacher_N.mean()) if gold else None,
        lost_high=lost_high,
    )


def _require_fair(
    student: Sequence[Verdict], teacher: Sequence[Verdict], pairs: Sequence[HeldOutPair], taught: Set[str]
) -> None:
    if not len(student) == len(teacher) == len(pairs):
        raise InputError(f"got {len(student)} and {len(teacher)} verdicts on {len(pairs)} pairs, expected one each")
    others = Counter(pair.origin for pair in pairs if pair.origin != "policy")
    if others:
        named = ", ".join(f"{number} by {origin}" for origin, number in sorted(others.items()))
        raise InputError(
            f"{others.total()} of {len(pairs)} pairs were not written by the policy ({named}); a student is accepted "
            "on what it will read, so provide only held-out pairs of the policy's own answers"
        )
    seen = sum(any(digest in taught for digest in verdict.prompt_digests) for verdict in student)
    if seen:
        raise InputError(
            f"{seen} of {len(pairs)} pairs were among the student's training pairs, expected none; hold prompts out "
            "before teaching"
        )


def _side(verdict: Verdict) -> int:
    """1: the first answer; -1: the second one; 0: neither, or no verdict. NaN is on no side either."""
    return 0 if verdict.margin is None else int(verdict.margin > 0) - int(verdict.margin < 0)


def _lower_bound(agree_N: Floats, prompts: Sequence[str], delta: float, seed: int) -> float:
    # Bound of the agreement: one minus the upper bound of the disagreement.
    exact = 1 - float(upper_bound(len(agree_N) - agree_N.sum(), len(agree_N), delta))
    drawn = mean(agree_N).interval(np.random.default_rng(seed), clusters_N=np.array(prompts), level=1 - 2 * delta)
    return min(exact, drawn.low)


def _lost(student_N: Floats, teacher_N: Floats, prompts: Sequence[str], delta: float, seed: int) -> float | None:
    """Upper bound of the teacher's agreement with gold minus the student's."""
    if not len(student_N):
        return None
    lost = mean(teacher_N) - mean(student_N)
    return lost.interval(np.random.default_rng(seed), clusters_N=np.array(prompts), level=1 - 2 * delta).high
