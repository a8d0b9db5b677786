"""A judge made of judges: the smallest one answers, and items where it is unsure go to the next.

    small ──sure──▶ verdict (level 0)
      └──unsure, or no verdict──▶ large ──▶ verdict (level 1)

The limit is measured, not chosen: `fit_threshold` finds the largest threshold at which the small judge's error stays
within the allowed rate, from pairs with known verdicts.

    uncertainties_N, errors_N = measured_against(await small.judge(items), targets)
    found = fit_threshold(uncertainties_N, errors_N, alpha=0.05, delta=0.05)
    judge = Cascade([small, large], [found.value])
"""

# N pairs, K tested thresholds, L levels

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from solon.errors import InputError
from solon.feedback.interfaces import Item, Judge, sound
from solon.feedback.quality.intervals import Floats, rows
from solon.verdicts import Status, Verdict

STARTS = 4
"""A walk from the surest pairs ends at its first chance error; walks from four places, each with a quarter of `delta`,
found 0.56 of the pairs where one found 0.15 (3,000 pairs, a judge that errs in 2 % even when it is sure)."""
TESTED = 50
"""Most thresholds that are tested; with finer steps a walk ends earlier by chance."""


class CascadeConfig(BaseModel):
    """`CascadeConfig(alpha=0.05, delta=0.05)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.05, gt=0, lt=1)
    """Allowed share of errors among the accepted verdicts of every judge except the last."""
    delta: float = Field(0.05, gt=0, lt=1)
    """Probability that a fitted threshold misses that."""
    invalid_escalations: int = Field(1, ge=0)
    """How often an item may escalate because a judge gave no verdict; after that it stays without one. A spent budget
    never causes an escalation."""


# --- Uncertainty ------------------------------------------------------------------------------------------


def uncertainty(verdict: Verdict) -> float:
    """Uncertainty of a valid verdict in bits, 0 to 1.

    Asked in both orders: Bidirectional Preference Entropy, H((p + q) / 2), where p and q are the probabilities that
    the two orders give the first answer. Orders that contradict each other make it 1, however sure each of them is.
    Otherwise the entropy of the calibrated margin; for a score, of its distance from the middle.
    Raises ValueError for a verdict without a finite margin.
    """
    margin = verdict.margin
    if margin is None or not math.isfinite(margin):
        raise ValueError(f"a {verdict.status} verdict with margin {margin} has no uncertainty, expected a valid one")
    offset, raw = verdict.position_offset, verdict.raw_margin
    if offset is None or not math.isfinite(offset):
        return _entropy(_sigmoid(-abs(margin)))
    # The offset is raw; calibration of pairs is a division, so its factor follows from the margin.
    offset *= margin / raw if raw else 1.0
    return _entropy((_sigmoid(-abs(margin) - offset) + _sigmoid(-abs(margin) + offset)) / 2)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700.0)) / (1 + math.exp(max(x, -700.0)))


def _entropy(p: float) -> float:
    """In bits. Exact for tiny p: judges are often sure to fifteen nats, and must still be ranked."""
    return 0.0 if p <= 0 else -(p * math.log(p) + (1 - p) * math.log1p(-p)) / math.log(2)


def measured_against(verdicts: Sequence[Verdict], targets: Sequence[float | None]) -> tuple[Floats, Floats]:
    """Uncertainties and errors (1: wrong side) of the usable verdicts, for `fit_threshold`.

    targets: probability that the first answer is better, or that the answer is yes, by gold or by the trusted judge;
    None if unknown. Undecided targets (0.5) and invalid verdicts are omitted.
    """
    if len(verdicts) != len(targets):
        raise InputError(f"got {len(verdicts)} verdicts and {len(targets)} targets, expected one each")
    found = [
        (uncertainty(verdict), float(verdict.margin == 0 or (verdict.margin > 0) != (target > 0.5)))
        for verdict, target in zip(verdicts, targets, strict=True)
        if target is not None and target != 0.5 and is_valid(verdict) and verdict.margin is not None
    ]
    columns = np.array(found, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


# --- Threshold --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A fitted threshold and its properties. `cascade = Cascade([small, large], [threshold.value])`"""

    value: float
    """Verdicts of at most this uncertainty are accepted; infinity: all."""
    coverage: float
    """Share of the calibration pairs that are accepted."""
    error: float
    """Share of errors among the accepted pairs."""
    bound: float
    """Upper confidence bound of that share, at most `alpha`."""
    accepted: int
    pairs: int
    alpha: float
    delta: float


def fit_threshold(uncertainties_N: ArrayLike, errors_N: ArrayLike, alpha: float, delta: float) -> Threshold:
    """The largest threshold whose error among accepted pairs is at most `alpha`, except with probability `delta`.

    uncertainties_N: any scale. errors_N: 1 where the judge was wrong, else 0. The pairs must be a uniform sample of
    future items, asked in as many orders. Upper bounds are Clopper and Pearson's. Choosing the best of many thresholds
    by their bounds would invalidate them; here thresholds are tested from sure to unsure and a walk ends at the first
    failure, which needs no correction (fixed-sequence testing in Learn then Test, arXiv:2110.01052); `STARTS` walks
    share `delta`. A threshold is tested on the pairs strictly below one of the measured uncertainties, which are a fair
    sample of what it would accept; it is assumed that the error grows with the uncertainty.

    The guarantee holds for pairs like these. A learning policy writes different answers, and exchangeability no longer
    holds: fit again for every epoch of the policy. Raises InputError for too few pairs, or when no threshold holds.
    """
    columns = rows(uncertainties=uncertainties_N, errors=errors_N)
    uncertainties_N, errors_N = columns["uncertainties"], columns["errors"]
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise InputError(f"got alpha = {alpha} and delta = {delta}, expected both between 0 and 1")
    if not np.isin(errors_N, (0.0, 1.0)).all():
        raise InputError("errors: got numbers other than 0 and 1, expected 1 where the judge was wrong, else 0")
    num, level = len(errors_N), delta / STARTS
    fewest = math.ceil(math.log(level) / math.log(1 - alpha))
    if num < fewest:
        raise InputError(
            f"got {num} pairs, expected at least {fewest}: fewer cannot show an error of at most {alpha:g} even "
            "without a single error; label more pairs, or allow a larger alpha"
        )
    order = np.argsort(uncertainties_N, kind="stable")
    sorted_N, wrong_N = uncertainties_N[order], np.concatenate([[0.0], np.cumsum(errors_N[order])])
    ranks_K = np.unique(np.linspace(fewest, num, TESTED).round().astype(int))
    # Strictly below a measured uncertainty: the pair that sets the limit is not a sample of the pairs inside.
    accepted_K = np.array([num if rank == num else int(np.searchsorted(sorted_N, sorted_N[rank])) for rank in ranks_K])
    bounds_K = upper_bound(wrong_N[accepted_K], accepted_K, level)
    best = _furthest(bounds_K <= alpha)
    if best is None:
        lowest = int(np.argmin(bounds_K))
        raise InputError(
            f"no threshold keeps the error at {alpha:g} or less: the lowest upper bound is {bounds_K[lowest]:.3f}, "
            f"among the surest {accepted_K[lowest]} of {num} pairs; label more pairs, allow a larger alpha, or ask the "
            "larger judge about everything"
        )
    accepted = int(accepted_K[best])
    return Threshold(
        value=math.inf if accepted == num else float(np.nextafter(sorted_N[accepted], -math.inf)),
        coverage=accepted / num,
        error=float(wrong_N[accepted]) / accepted,
        bound=float(bounds_K[best]),
        accepted=accepted,
        pairs=num,
        alpha=alpha,
        delta=delta,
    )


def upper_bound(errors_K: ArrayLike, pairs_K: ArrayLike, delta: float) -> Floats:
    """One-sided upper confidence bound of a share (Clopper and Pearson 1934); 1 where there are no pairs."""
    from scipy.special import betaincinv

    errors, pairs = np.asarray(errors_K, dtype=np.float64), np.asarray(pairs_K, dtype=np.float64)
    right = pairs - errors
    bounds: Floats = np.where(right > 0, betaincinv(errors + 1, np.maximum(right, 1.0), 1 - delta), 1.0)
    return bounds


def _furthest(holds_K: Any) -> int | None:
    """The last threshold reached by any walk."""
    reached = None
    for start in range(STARTS):
        index = start * len(holds_K) // STARTS
        while index < len(holds_K) and holds_K[index]:
            reached = index if reached is None else max(reached, index)
            index += 1
    return reached


# --- The judge --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Case:
    """An item on its way through the levels."""

    item: Item
    said: list[Verdict] = field(default_factory=list)
    invalid: int = 0


class Cascade:
    """Implements `Judge`.

    judges: cheapest first. thresholds: for each judge except the last, the uncertainty in bits up to which its verdict
    is accepted. The last judge's verdict is final, even if it is invalid: an unsure verdict of a smaller judge does not
    become good because the larger one failed. The guarantee of a threshold concerns the verdicts of its own level,
    against the targets of its fit.

    All items of a call go to the first judge together, and the escalated ones together to the next. A verdict's
    `level` tells which judge gave it; its costs include all levels that were asked.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        thresholds: Sequence[float],
        config: CascadeConfig | None = None,
        *,
        name: str = "",
    ) -> None:
        if not judges or len(thresholds) != len(judges) - 1:
            raise InputError(
                f"got {len(judges)} judges and {len(thresholds)} thresholds, expected a threshold for every judge but "
                "the last"
            )
        if any(math.isnan(threshold) or threshold < 0 for threshold in thresholds):
            raise InputError(f"thresholds: got {list(thresholds)}, expected bits of at least 0; fit them on gold pairs")
        self.name = name or " > ".join(judge.name for judge in judges)
        self._judges = tuple(judges)
        self._thresholds = (*thresholds, math.inf)
        self._config = config or CascadeConfig()

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        cases = [_Case(item) for item in items]
        waiting = cases
        for judge, threshold in zip(self._judges, self._thresholds, strict=True):
            if not waiting:
                break
            verdicts = await judge.judge([case.item for case in waiting])
            for case, verdict in zip(waiting, verdicts, strict=True):
                case.said.append(sound(verdict))
                case.invalid += not case.said[-1].status.valid
            waiting = [case for case in waiting if self._escalates(case, threshold)]
        return [_conclude(case) for case in cases]

    def _escalates(self, case: _Case, threshold: float) -> bool:
        verdict = case.said[-1]
        if verdict.status is Status.BUDGET_SKIP:
            return False
        if not verdict.status.valid:
            return case.invalid <= self._config.invalid_escalations
        return uncertainty(verdict) > threshold


def _conclude(case: _Case) -> Verdict:
    last = case.said[-1]
    earlier = [f"{v.judge or f'level {n}'}: {v.status}" for n, v in enumerate(case.said[:-1]) if not v.status.valid]
    detail = "; ".join([*earlier, *([last.detail] if last.detail else [])])
    return replace(last, level=len(case.said) - 1, detail=detail, **summed_costs(case.said))


def is_valid(verdict: Verdict) -> bool:
    """Whether a verdict has a finite margin."""
    return verdict.margin is not None and math.isfinite(verdict.margin)


def summed_costs(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Total cost of several verdicts on one item, as fields of a verdict."""
    return {
        "questions": sum(v.questions for v in verdicts),
        "prompt_tokens": sum(v.prompt_tokens for v in verdicts),
        "cached_tokens": sum(v.cached_tokens for v in verdicts),
        "output_tokens": sum(v.output_tokens for v in verdicts),
        "cache_hits": sum(v.cache_hits for v in verdicts),
        "usd": sum(v.usd for v in verdicts),
        "prompt_digests": tuple(digest for v in verdicts for digest in v.prompt_digests),
    }
