"""The targets of one step, computed once for the whole batch before its first update.

N: response tokens of the batch; M: of a microbatch; R: rollouts; T: positions of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from learners.core.agreement import blame
from learners.core.batch import Batch
from learners.core.head import Beside
from learners.core.packing import Microbatch
from learners.core.policy import Policy
from learners.policy_gradient.advantages import GAE, GroupRelative, token_rewards, whiten
from learners.policy_gradient.config import PolicyGradientConfig
from learners.policy_gradient.losses import explained_variance, importance_weights, kl_k1, kl_k3

Metric = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of a batch before its advantages; every tensor is [N]."""

    prox_N: Tensor
    """log pi_prox: the policy before the first update."""
    weights_N: Tensor
    """Importance weights, 0 for masked tokens: those train nothing, neither policy nor critic, and are in no mean."""
    reference_N: Tensor | None
    """Log-probs of the frozen reference; None: there is none."""
    live_values_N: Tensor | None = None
    """Of a critic that shares the policy's body and was computed in the same pass; None: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """How much better each token was than expected; every tensor is [N]."""

    advantages_N: Tensor
    values_N: Tensor | None = None
    """Of the critic, before the first update; None: there is no critic."""
    returns_N: Tensor | None = None
    """What the critic learns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets(Scores):
    """The targets of all minibatches of a step, fixed while the networks move; every tensor is [N]."""

    advantages_N: Tensor
    values_N: Tensor | None
    returns_N: Tensor | None


def gather(
    policy: Policy,
    batch: Batch,
    microbatches: Sequence[Microbatch],
    forward: Callable[[Microbatch], tuple[Tensor, ...]],
) -> list[Tensor]:
    """Outputs of a forward pass over all microbatches, [N] each, in the batch's order. Ranks share the passes, and all
    of them get all outputs."""
    turns = policy.ranks.turns([policy.layout.cost(microbatch) for microbatch in microbatches])
    pieces = [(microbatches[place].index_M, forward(microbatches[place]), counts) for place, counts in turns]
    wrong = -1
    if not policy.ranks.is_alone:
        finite = [_are_finite(parts) for _, parts, _ in pieces]
        wrong = next((place for (place, _), ok in zip(turns, finite, strict=True) if not ok), -1)
    blame(policy.ranks, wrong, lambda place: _are_finite(forward(microbatches[place])))
    gathered = []
    for which in range(len(pieces[0][1])):
        flat_N = torch.zeros(batch.num_tokens, device=policy.device)
        for index_M, parts, counts in pieces:
            if counts:
                flat_N[index_M] = parts[which].float()
        gathered.append(policy.ranks.joined(flat_N))
    return gathered


def _are_finite(parts: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in parts)


SCORED = ("logprobs", "entropy", "outside")


def _scores(policy: Policy, values: Beside | None, microbatch: Microbatch) -> tuple[Tensor, ...]:
    """Of the policy before the first update, in the order of SCORED, [M] each; then the values, and last the
    reference, where they exist."""
    scored = policy.score(microbatch, entropy=True, reference=policy.has_reference, values=values)
    assert scored.entropy_M is not None
    nothing = torch.zeros_like(scored.logprobs_M)
    outside_M = nothing if scored.outside_M is None else scored.outside_M.float()
    more = [one for one in (scored.values_M, scored.reference_M) if one is not None]
    return (scored.logprobs_M, scored.entropy_M, outside_M, *more)


@torch.no_grad()
def policy_targets(
    config: PolicyGradientConfig,
    policy: Policy,
    batch: Batch,
    microbatches: Sequence[Microbatch],
    step: int,
    *,
    values: Beside | None = None,
) -> tuple[Scores, Metric]:
    """Scores of a batch, and metrics of the distance between the policies. values: a head whose values are computed in
    the same pass."""
    metrics: Metric = {}
    behaviour_N = torch.from_numpy(batch.behaviour_N).to(policy.device)
    version_N = torch.from_numpy(batch.version_N).to(policy.device)
    prox_N, reference_N, values_N = behaviour_N, None, None
    outside_N = torch.zeros_like(version_N, dtype=torch.bool)
    if not config.bypass or policy.filters:
        names = SCORED + ("values",) * (values is not None) + ("reference",) * policy.has_reference
        found = gather(policy, batch, microbatches, partial(_scores, policy, values))
        scored = dict(zip(names, found, strict=True))
        values_N = scored.get("values")
        prox_N = prox_N if config.bypass else scored["logprobs"]
        metrics["entropy/mean"] = float(scored["entropy"].mean())
        reference_N, outside_N = scored.get("reference"), scored["outside"] > 0
    elif policy.has_reference:
        (reference_N,) = gather(policy, batch, microbatches, lambda m: (policy.reference_logprobs(m),))
    if policy.filters:
        metrics["outside_set/share"] = float(outside_N.float().mean())
    if reference_N is not None:
        metrics["kl_reference/mean"] = float(kl_k3(prox_N, reference_N).mean())
        metrics["reference_log_ratio/mean"] = float((prox_N - reference_N).mean())
    masked_N = outside_N
    if config.max_token_staleness is not None:
        old_N = version_N < step - config.max_token_staleness
        masked_N = masked_N | old_N
        metrics["too_old/share"] = float(old_N.float().mean())
    if config.truncated == "mask":
        masked_N = masked_N | torch.from_numpy(batch.truncated_R[batch.rollout_N]).to(policy.device)
    weights_N, diagnostics = importance_weights(
        prox_N,
        behaviour_N,
        torch.from_numpy(batch.rollout_N).to(policy.device),
        batch.num_rollouts,
        method=config.importance,
        cap=config.importance_cap,
        icepop=(config.icepop_low, config.icepop_high),
        geometric_mask=config.geometric_mask,
        masked_N=masked_N,
    )
    metrics["masked/share"] = float((weights_N == 0).float().mean())
    metrics |= {key: float(value) for key, value in diagnostics.items()}
    fresh_N = version_N == step
    if bool(fresh_N.any()):
        # Only the engine's arithmetic separates mu from pi_prox here.
        metrics["mismatch_gap_fresh/mean"] = float((prox_N - behaviour_N).abs()[fresh_N].mean())
    return Scores(prox_N=prox_N, weights_N=weights_N, reference_N=reference_N, live_values_N=values_N), metrics


def group_advantages(config: PolicyGradientConfig, batch: Batch, kept_N: Tensor) -> Tensor:
    """Group-relative advantages, the same for every token of a rollout, [N].

    kept_N: tokens that train. A rollout without one is in no mean and no deviation, whatever masked it: its length, its
    age, or its distance from the policy.
    """
    relative = GroupRelative(divide_by_std=config.normalize_advantages, epsilon=config.advantage_epsilon)
    kept_R = np.zeros(batch.num_rollouts, bool)
    kept_R[batch.rollout_N[kept_N.cpu().numpy()]] = True
    compared = [list(rewards) for rewards in batch.baseline_rewards]
    for p, member in zip(batch.group_R[~kept_R], batch.member_R[~kept_R], strict=True):
        compared[p][member] = None
    by_group = [relative(rewards) for rewards in compared]
    # A rollout without an advantage is masked: it has no comparison.
    advantage_R = np.array(
        [by_group[p][member] or 0.0 for p, member in zip(batch.group_R, batch.member_R, strict=True)], np.float32
    )
    return torch.from_numpy(advantage_R[batch.rollout_N]).to(kept_N.device)


class TokenRewards:
    """The rewards of a batch laid out per token, and GAE over them."""

    def __init__(self, config: PolicyGradientConfig, batch: Batch, prox_N: Tensor, reference_N: Tensor | None) -> None:
        self._config = config
        length_R = torch.from_numpy(batch.length_R).to(prox_N.device)
        self._mask_RT = torch.arange(int(batch.length_R.max()), device=prox_N.device) < length_R[:, None]
        penalty_N = torch.zeros_like(prox_N)
        if reference_N is not None:
            penalty_N = config.kl_coefficient * kl_k1(prox_N, reference_N)
        self._reward_R = torch.from_numpy(batch.reward_R).to(prox_N.device)
        self._truncated_R = torch.from_numpy(batch.truncated_R).to(prox_N.device)
        self._last_R = torch.from_numpy(batch.start_R + batch.length_R - 1).to(prox_N.device)
        self._penalty_RT = self._ragged(penalty_N)
        self._reward_RT = token_rewards(self._reward_R, self._penalty_RT, self._mask_RT)

    def _ragged(self, x_N: Tensor) -> Tensor:
        # Tokens lie rollout by rollout, which is the order in which a mask is filled.
        return x_N.new_zeros(self._mask_RT.shape).masked_scatter(self._mask_RT, x_N)

    def to_go_N(self) -> Tensor:
        """The rewards collected from every token on: returns that need no critic."""
        nothing_RT = torch.zeros_like(self._reward_RT)
        returns_RT, _ = GAE(gamma=self._config.gamma, lam=1.0)(self._reward_RT, nothing_RT, self._mask_RT)
        return returns_RT[self._mask_RT]

    def has_return_N(self) -> Tensor:
        """Tokens whose rollout has a return that does not come from the critic itself."""
        has_R = ~self._truncated_R if self._config.truncated == "bootstrap" else torch.ones_like(self._truncated_R)
        return has_R[:, None].expand_as(self._mask_RT)[self._mask_RT]

    def advantages(self, values_N: Tensor, kept_N: Tensor) -> tuple[Tensor, Tensor, Metric]:
        """Advantages and returns, [N] each, and how well the values predicted the returns; means and whitening are over
        the tokens of `kept_N`."""
        gae = GAE(gamma=self._config.gamma, lam=self._config.lam)
        advantages_RT, returns_RT = gae(self._ends_RT(values_N), self._ragged(values_N), self._mask_RT)
        advantages_N, returns_N = advantages_RT[self._mask_RT], returns_RT[self._mask_RT]
        told_N = kept_N & self.has_return_N()
        metrics = {
            "value/mean": mean_of(values_N, kept_N),
            "return/mean": mean_of(returns_N, kept_N),
            "explained_variance/mean": float(explained_variance(values_N[told_N], self.to_go_N()[told_N])),
        }
        if self._config.normalize_advantages:
            advantages_N = whiten(advantages_N, kept_N)
        return advantages_N, returns_N, metrics

    def _ends_RT(self, values_N: Tensor) -> Tensor:
        """Rewards per token; with `bootstrap` a truncated answer ends in the critic's expectation before its last
        token, in place of the verdict on a truncated text. Both together would count the answer twice."""
        if self._config.truncated != "bootstrap":
            return self._reward_RT
        ends_R = torch.where(self._truncated_R, values_N[self._last_R], self._reward_R)
        return token_rewards(ends_R, self._penalty_RT, self._mask_RT)


def mean_of(x_N: Tensor, kept_N: Tensor) -> float:
    """Mean over the kept tokens; 0 when there are none."""
    return float(x_N[kept_N].mean()) if bool(kept_N.any()) else 0.0
