"""Selects items to label, each with a known probability.

    signals ──utility──▶ propensities ──draw──▶ selections

Every item is drawn independently with a recorded probability (Poisson sampling), so that measurements on the labelled
items can be corrected for the selection: `solon.feedback.selection.estimators`. A draw is a hash of the seed and the
item's name, so that a restarted run selects the same items.

Selection never removes audit data: an audit item is labelled with certainty, spends no budget and does not change the
propensity of other items, whatever the policy.
"""

# N items, M labelled items, K policies

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.errors import InputError
from solon.feedback.quality.intervals import Floats
from solon.feedback.selection.worth import Signals, disagreement, divergence, diversity, impact, near_tie, uncertainty

PolicyName = Literal["random", "uncertainty", "disagreement", "near_tie", "impact", "diversity"]
AUDIT = "audit"
"""Policy id of audited items."""
LEAST_SHARE = 1e-200
"""A utility below this share of the largest one counts as zero."""


class SelectionConfig(BaseModel):
    """Which items are labelled. `SelectionConfig(policy="uncertainty", rate=0.25)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: PolicyName | Literal["bandit"] = "random"
    """Criterion for labelling an item; `bandit` mixes `bandit_policies` and learns which of them finds surprises."""
    rate: float = Field(0.25, gt=0, le=1)
    """Expected share of labelled items."""
    sharpness: float = Field(1.0, ge=0)
    """Exponent of the utilities: 0 is random, larger values are greedier."""
    floor: float = Field(0.05, gt=0, le=1)
    """Least propensity of any item: an item that can never be selected cannot be corrected for."""
    weight_clip: float = Field(20.0, ge=1)
    """Weights are the inverse propensity, at most this."""
    disagreement: Literal["variance", "js"] = "variance"
    """Measure of disagreement between proxies: variance of their margins, or Jensen-Shannon divergence of their
    verdicts, which depends only on margins near 0."""
    near_tie_width: float = Field(1.0, gt=0)
    """Margin in nats at which a pair has 1/e of the value of a tie (near_tie)."""
    clusters: int = Field(16, ge=1)
    """Regions with equal expected numbers of labels (diversity)."""
    bandit_policies: tuple[PolicyName, ...] = ("uncertainty", "disagreement")
    """Policies that the bandit mixes."""
    bandit_floor: float = Field(0.15, ge=0.1, le=0.2)
    """Share of the budget that the bandit always spends at random."""
    bandit_rate: float = Field(2.0, gt=0)
    """Learning rate of the bandit."""

    @model_validator(mode="after")
    def _floor_fits(self) -> Self:
        if self.floor > self.rate:
            raise ValueError(
                f"floor = {self.floor} above rate = {self.rate}: the floor alone would overspend; lower it"
            )
        if len(set(self.bandit_policies)) < len(self.bandit_policies) or not self.bandit_policies:
            raise ValueError(f"bandit_policies = {self.bandit_policies}, expected distinct policies, one at least")
        return self

    @property
    def policy_id(self) -> str:
        """Name of the policy with a digest of all its settings."""
        return f"{self.policy}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Whether an item is labelled, and its weight. Stored with the label.

    Selection(item_id="p7:0:1", policy_id="uncertainty-9f2c41aa", propensity=0.25, selected=True, weight=4.0)
    """

    item_id: str
    policy_id: str
    propensity: float
    """Probability of being selected."""
    selected: bool
    weight: float
    """1 / propensity, clipped; 0 when not selected."""
    proxy_score: float | None = None
    """The proxy's margin, nats: the control variate of an unlabelled reward."""


# -- propensities ------------------------------------------------------------------------------------------------


def utility(policy: PolicyName, signals: Signals, config: SelectionConfig) -> Floats:
    """The policy's utility of each item. Raises InputError for a missing signal."""
    margins, advantages, embeddings = signals.margins_KN, signals.advantages_N, signals.embeddings_NH
    if policy == "random":
        return np.ones(signals.num)
    if policy == "diversity":
        return diversity(_needed(policy, "embeddings", embeddings), config.clusters)
    margins = _needed(policy, "margins", margins)
    if policy == "impact":
        return impact(_needed(policy, "advantages", advantages), margins[0])
    by_name: dict[str, Callable[[], Floats]] = {
        "uncertainty": lambda: uncertainty(margins[0]),
        "disagreement": lambda: (divergence if config.disagreement == "js" else disagreement)(margins),
        "near_tie": lambda: near_tie(margins[0], config.near_tie_width),
    }
    return by_name[policy]()


def propensities(utilities_N: ArrayLike, *, rate: float, floor: float, sharpness: float = 1.0) -> Floats:
    """clip(c u^sharpness, floor, 1) with c such that they sum to rate * N.

    If the items with a utility cannot use up the budget, all of them are selected and the others share the rest. Raises
    InputError for a utility that is negative or not finite, or a floor above the rate.
    """
    utilities = np.asarray(utilities_N, dtype=np.float64)
    if not len(utilities):
        return np.zeros(0)
    if not np.isfinite(utilities).all() or utilities.min() < 0:
        raise InputError(
            f"utilities: got {utilities.min()} to {utilities.max()}, expected finite numbers of at least 0"
        )
    if not 0 <= floor <= rate <= 1:
        raise InputError(f"got floor {floor} and rate {rate}, expected 0 <= floor <= rate <= 1; lower the floor")
    top = utilities.max()
    shares = (utilities / top) ** sharpness if top > 0 else np.zeros_like(utilities)
    shares[(shares < LEAST_SHARE) | (utilities == 0)] = 0.0
    budget = rate * len(shares)
    useful_N = shares > 0
    num_useless = int((~useful_N).sum())
    if num_useless and useful_N.sum() + floor * num_useless <= budget:
        return np.where(useful_N, 1.0, (budget - useful_N.sum()) / num_useless)
    return np.clip(_scale(shares, budget, floor) * shares, floor, 1.0)


def _scale(shares_N: Floats, budget: float, floor: float) -> float:
    """c with sum(clip(c shares, floor, 1)) = budget. The sum rises piecewise linearly with c and bends where an item
    leaves the floor or becomes certain: find the two bends around the budget and interpolate."""
    positive = shares_N[shares_N > 0]
    bends = np.unique(np.concatenate([floor / positive, 1.0 / positive]))

    def spent(scale: float) -> float:
        return float(np.clip(scale * shares_N, floor, 1.0).sum())

    low, high = 0, len(bends) - 1
    if spent(bends[low]) >= budget:
        return float(bends[low])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(bends[middle]) < budget else (low, middle)
    below, above = spent(bends[low]), spent(bends[high])
    if above <= below:
        return float(bends[high])
    return float(bends[low] + (bends[high] - bends[low]) * (budget - below) / (above - below))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Propensities of N items, and those under each policy alone."""

    propensities_N: NDArray[np.float64]
    by_policy_KN: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bandit:
    """Trust in each policy: exponential weights (Freund and Schapire 1997) on the surprise of its labels.

    Every label counts for every policy, weighted by how much likelier that policy selects it; so no policy needs rounds
    of its own.
    """

    log_weights_K: tuple[float, ...]

    @property
    def shares_K(self) -> Floats:
        """They sum to 1."""
        weights = np.exp(np.array(self.log_weights_K) - max(self.log_weights_K))
        return np.asarray(weights / weights.sum())

    def learned(
        self, plan: Plan, selected_N: ArrayLike, surprises_N: ArrayLike, *, rate: float, weight_clip: float = 20.0
    ) -> Self:
        """The bandit after a round. surprises_N: |soft label - proxy's prediction|, from 0 to 1; NaN without a valid
        label."""
        surprises = np.asarray(surprises_N, dtype=np.float64)
        seen_N = np.asarray(selected_N, dtype=bool) & np.isfinite(surprises)
        if not seen_N.any():
            return self
        ratios_KM = np.minimum(plan.by_policy_KN[:, seen_N] / plan.propensities_N[seen_N], weight_clip)
        gains_K = ratios_KM @ surprises[seen_N] / ratios_KM.sum(1)
        moved_K = np.array(self.log_weights_K) + rate * gains_K
        return replace(self, log_weights_K=tuple((moved_K - moved_K.max()).tolist()))


def plan(signals: Signals, config: SelectionConfig, bandit: Bandit | None = None) -> Plan:
    """Propensities under the config; `bandit`: its present state."""
    policies = config.bandit_policies if config.policy == "bandit" else (config.policy,)
    by_policy_KN = np.stack(
        [
            propensities(utility(p, signals, config), rate=config.rate, floor=config.floor, sharpness=config.sharpness)
            for p in policies
        ]
    )
    if config.policy != "bandit":
        return Plan(propensities_N=by_policy_KN[0], by_policy_KN=by_policy_KN)
    shares_K = (bandit or Bandit((0.0,) * len(policies))).shares_K
    if len(shares_K) != len(policies):
        raise InputError(f"got a bandit over {len(shares_K)} policies, expected {len(policies)}; start a new one")
    mixed_N = config.bandit_floor * config.rate + (1 - config.bandit_floor) * (shares_K @ by_policy_KN)
    return Plan(propensities_N=np.asarray(mixed_N), by_policy_KN=by_policy_KN)


# -- draws -------------------------------------------------------------------------------------------------------


def select(
    item_ids: Sequence[str],
    propensities_N: ArrayLike,
    config: SelectionConfig,
    *,
    seed: int,
    turn: int = 0,
    proxy_scores_N: ArrayLike | None = None,
) -> list[Selection]:
    """Draw each item independently. The same seed, turn and item id give the same draw, whatever the rest of the batch.

    turn: number of earlier draws of an item; an item that returns needs a new draw, or it would never be selected.
    """
    wanted = np.asarray(propensities_N, dtype=np.float64)
    scores = [None] * len(item_ids) if proxy_scores_N is None else np.asarray(proxy_scores_N, np.float64).tolist()
    if not len(item_ids) == len(wanted) == len(scores) or len(set(item_ids)) < len(item_ids):
        raise InputError(
            f"got {len(set(item_ids))} distinct ids for {len(item_ids)} items with {len(wanted)} propensities and "
            f"{len(scores)} scores, expected one of each per item"
        )
    found, policy_id = [], config.policy_id
    for item_id, propensity, score in zip(item_ids, wanted.tolist(), scores, strict=True):
        selected = _draw(seed, turn, item_id) < propensity
        found.append(
            Selection(
                item_id=item_id,
                policy_id=policy_id,
                propensity=propensity,
                selected=selected,
                weight=min(1 / propensity, config.weight_clip) if selected else 0.0,
                proxy_score=score,
            )
        )
    return found


def audited(item_ids: Sequence[str]) -> list[Selection]:
    """Selections of audit items: certain, of weight 1, and not part of any policy's budget."""
    return [Selection(item_id=i, policy_id=AUDIT, propensity=1.0, selected=True, weight=1.0) for i in item_ids]


def choose(
    item_ids: Sequence[str],
    signals: Signals,
    config: SelectionConfig,
    *,
    seed: int,
    turn: int = 0,
    audit_ids: frozenset[str] = frozenset(),
    bandit: Bandit | None = None,
) -> list[Selection]:
    """Plan and draw in one call, in the order of the items; audited items bypass both."""
    rest = [index for index, item_id in enumerate(item_ids) if item_id not in audit_ids]
    made = plan(signals.taken(rest), config, bandit)
    scores = None if signals.margins_KN is None else signals.margins_KN[0, rest]
    drawn = iter(
        select([item_ids[i] for i in rest], made.propensities_N, config, seed=seed, turn=turn, proxy_scores_N=scores)
    )
    return [audited([item_id])[0] if item_id in audit_ids else next(drawn) for item_id in item_ids]


def _needed(policy: str, name: str, values: Floats | None) -> Floats:
    if values is None:
        raise InputError(f"the selection policy {policy!r} got no {name}, expected them; choose another policy")
    return values


def _draw(seed: int, turn: int, item_id: str) -> float:
    """Uniform in [0, 1), the same for the same item at the same turn of the same run."""
    digest = hashlib.sha256(f"selection:{seed}:{turn}:{item_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
