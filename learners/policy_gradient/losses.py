"""The losses and the diagnostics of off-policy PPO, as pure functions of flat tensors.

N: response tokens of a minibatch or of one of its microbatches, flat; R: rollouts.
Three policies: mu wrote the tokens (`behaviour_N`), pi_prox is the policy at the start of the step
(`prox_N`), pi is the policy now (`logprobs_N`). Log-probs are natural, of the sampled token, at the
sampling temperature.

Every sum is divided by a `denominator` that the caller passes: the token count of the whole minibatch, so
that losses, gradients and metrics of its microbatches add up to those of one big batch. It counts masked
tokens too: a mask must not raise the weight of what is left. A masked token is one of weight 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learners.core.objective import Metrics

LOG_RATIO_BOUND = 20.0
"""exp(20) is finite in float32, and far beyond any ratio that still trains."""
KL_LOG_RATIO_BOUND = 10.0
"""Bound on the value of k3, which grows like exp(log ratio), and on the slope of every KL estimate: one token must not
own the gradient."""
KL_RATIO_BOUND = 10.0
"""How much more pi may weigh a token's KL than pi_prox does."""
OUTLIER_RATIO = (1e-4, 100.0)
"""Outside it pi_prox and mu disagree so much that something is broken: the token is masked."""


def log_ratio(new_N: Tensor, old_N: Tensor) -> Tensor:
    """log(new / old), bounded."""
    return (new_N - old_N).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def kl_k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Per-token estimate of KL(pi || reference) from samples of pi: unbiased, of either sign."""
    return logprobs_N - reference_N


def kl_k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Per-token estimate of KL(pi || reference) from samples of pi: exp(x) - x - 1 with
    x = log reference - log pi; unbiased and never negative (Schulman 2020, "Approximating KL divergence")."""
    x_N = (reference_N - logprobs_N).clamp(-KL_LOG_RATIO_BOUND, KL_LOG_RATIO_BOUND)
    return torch.expm1(x_N) - x_N


def kl_loss(
    logprobs_N: Tensor,
    prox_N: Tensor,
    weights_N: Tensor,
    reference_N: Tensor,
    *,
    denominator: float,
    estimator: Literal["weighted", "k2", "k3"],
) -> tuple[Tensor, Metrics]:
    """KL(pi || reference) at the visited positions, as a loss whose gradient is what counts.

    With s = log pi - log reference and rho = pi / mu = weight x pi / pi_prox:

    `weighted`: the gradient of rho k3 with rho differentiated too, which is rho s grad log pi. Its mean over tokens of
    mu is the gradient of KL(pi || reference), on policy and off. `k2`: s grad log pi, the gradient of s^2 / 2: exact on
    policy alone. `k3`: (1 - exp(-s)) grad log pi: what k3 gives when nothing but itself is differentiated. On policy
    that is the gradient of KL(reference || pi), another divergence.

    The factor before grad log pi is bounded, so that a distant token has a bounded gradient. A masked token has none.
    The loss has the value of its gradient's line through 0; the estimate of the KL is the metric.
    """
    with torch.no_grad():
        kept_N = weights_N > 0
        gap_N = (logprobs_N - reference_N).clamp(-KL_LOG_RATIO_BOUND, KL_LOG_RATIO_BOUND)
        if estimator == "weighted":
            weight_N = weights_N * log_ratio(logprobs_N, prox_N).exp().clamp(max=KL_RATIO_BOUND)
            slope_N, value_N = weight_N * gap_N, weight_N * kl_k3(logprobs_N, reference_N)
        elif estimator == "k2":
            slope_N, value_N = kept_N * gap_N, kept_N * gap_N.square() / 2
        else:
            slope_N = kept_N * -torch.expm1(-gap_N).clamp(max=KL_LOG_RATIO_BOUND)
            value_N = kept_N * kl_k3(logprobs_N, reference_N)
    loss = (slope_N * logprobs_N).sum() / denominator
    return loss, {"kl_loss/mean": value_N.sum() / denominator}


def rollout_mean(x_N: Tensor, rollout_N: Tensor, num_rollouts: int) -> Tensor:
    """Mean over the tokens of each rollout, [R]. `rollout_N` holds the rollout of every token."""
    sum_R = x_N.new_zeros(num_rollouts).index_add(0, rollout_N, x_N)
    count_R = x_N.new_zeros(num_rollouts).index_add(0, rollout_N, torch.ones_like(x_N))
    return sum_R / count_R.clamp(min=1)


def importance_weights(
    prox_N: Tensor,
    behaviour_N: Tensor,
    rollout_N: Tensor,
    num_rollouts: int,
    *,
    method: Literal["token", "icepop", "sequence", "none"],
    cap: float,
    icepop: tuple[float, float],
    geometric_mask: float | None,
    masked_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Weights that correct for sampling from mu instead of pi_prox; they carry no gradient.

    With rho = pi_prox / mu: `token` min(rho, cap) (truncated importance sampling, Yao et al. 2025);
    `icepop` rho inside the band, else 0; `sequence` min(prod_t rho, cap) for all tokens of the rollout.
    Outliers get 0, with `sequence` their whole rollout, whose product is undefined without them. So do rollouts with
    |mean_t log rho| > geometric_mask when that is given, and the tokens of `masked_N`.
    Returns the weights [N] and their diagnostics; `importance` and `ess` are of the weights as returned.
    """
    with torch.no_grad():
        log_rho_N = log_ratio(prox_N, behaviour_N)
        rho_N = log_rho_N.exp()
        mean_log_rho_R = rollout_mean(log_rho_N, rollout_N, num_rollouts)
        if method == "token":
            weights_N, changed_N = rho_N.clamp(max=cap), rho_N > cap
        elif method == "icepop":
            changed_N = (rho_N < icepop[0]) | (rho_N > icepop[1])
            weights_N = rho_N.masked_fill(changed_N, 0.0)
        elif method == "sequence":
            log_rho_R = rho_N.new_zeros(num_rollouts).index_add(0, rollout_N, log_rho_N)
            sequence_N = log_rho_R.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()[rollout_N]
            weights_N, changed_N = sequence_N.clamp(max=cap), sequence_N > cap
        else:
            weights_N, changed_N = torch.ones_like(rho_N), torch.zeros_like(rho_N, dtype=torch.bool)

        outlier_N = (rho_N < OUTLIER_RATIO[0]) | (rho_N > OUTLIER_RATIO[1])
        if method == "sequence":
            outlier_N = rollout_mean(outlier_N.float(), rollout_N, num_rollouts)[rollout_N] > 0
        weights_N = weights_N.masked_fill(outlier_N, 0.0)
        drift_R = mean_log_rho_R.abs()
        if geometric_mask is not None:
            weights_N = weights_N.masked_fill((drift_R > geometric_mask)[rollout_N], 0.0)
        if masked_N is not None:
            weights_N = weights_N.masked_fill(masked_N, 0.0)

        gap_N = (prox_N - behaviour_N).abs()
        metrics = {
            # Tokens come from mu, so this estimates KL(mu || pi_prox).
            "mismatch_kl/mean": kl_k3(behaviour_N, prox_N).mean(),
            "mismatch_gap/mean": gap_N.mean(),
            "mismatch_gap/max": gap_N.max(),
            "importance/mean": weights_N.mean(),
            "importance_clipped/share": changed_N.float().mean(),
            "outlier/share": outlier_N.float().mean(),
            "ess/mean": effective_sample_share(weights_N),
            "geometric_drift/mean": drift_R.mean(),
            "geometric_drift/max": drift_R.max(),
        }
        return weights_N, metrics


def effective_sample_share(weights_N: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2): 1 when all weights are equal, 1/n when one token has all of it (Kish 1965)."""
    return weights_N.sum().square() / (len(weights_N) * weights_N.square().sum()).clamp(min=1e-12)


def policy_loss(
    logprobs_N: Tensor,
    prox_N: Tensor,
    weights_N: Tensor,
    advantages_N: Tensor,
    *,
    denominator: float,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Metrics]:
    """Decoupled PPO (Hilton et al. 2021): -sum_t w min(r A, clip(r) A) / denominator, r = pi / pi_prox.

    Where A < 0 the surrogate is bounded below by dual_clip * A (Ye et al. 2020): a bad token that pi has
    made much likelier must not push without bound.
    """
    log_ratio_N = log_ratio(logprobs_N, prox_N)
    ratio_N = log_ratio_N.exp()
    free_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    surrogate_N = torch.minimum(free_N, clipped_N)
    bounded_N = torch.zeros_like(surrogate_N, dtype=torch.bool)
    if dual_clip is not None:
        floor_N = dual_clip * advantages_N
        bounded_N = (advantages_N < 0) & (surrogate_N < floor_N)
        surrogate_N = torch.where(bounded_N, floor_N, surrogate_N)
    loss = -(weights_N * surrogate_N).sum() / denominator
    with torch.no_grad():
        kept_N = weights_N > 0
        stopped_N = kept_N & (clipped_N < free_N)
        metrics = {
            "policy_loss/mean": loss.detach(),
            "clip_fraction/mean": stopped_N.sum() / denominator,
            "clip_fraction_low/mean": (stopped_N & (ratio_N < 1)).sum() / denominator,
            "clip_fraction_high/mean": (stopped_N & (ratio_N > 1)).sum() / denominator,
            "dual_clip_fraction/mean": (kept_N & bounded_N).sum() / denominator,
            "update_kl/mean": (torch.expm1(log_ratio_N) - log_ratio_N).sum() / denominator,
        }
    return loss, metrics


def value_loss(
    values_N: Tensor,
    old_values_N: Tensor,
    returns_N: Tensor,
    *,
    denominator: float,
    clip: float | None,
    kept_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the squared error to the returns; with `clip`, the larger of it and of the error of the value
    held within `clip` of its old one (Schulman et al. 2017, released code). `kept_N`: tokens that count; None: all."""
    error_N = (values_N - returns_N).square()
    stopped_N = torch.zeros_like(error_N, dtype=torch.bool)
    if clip is not None:
        held_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        held_error_N = (held_N - returns_N).square()
        # Within the bound the held value is the value but for rounding.
        stopped_N = ((values_N - old_values_N).abs() > clip) & (held_error_N > error_N)
        error_N = torch.where(stopped_N, held_error_N, error_N)
    if kept_N is not None:
        error_N, stopped_N = error_N * kept_N, stopped_N & kept_N
    loss = 0.5 * error_N.sum() / denominator
    return loss, {"value_loss/mean": loss.detach(), "value_clip_fraction/mean": stopped_N.sum() / denominator}


def explained_variance(values_N: Tensor, returns_N: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean; 0
    when the returns do not vary or there are none."""
    if not len(returns_N) or (spread := returns_N.var(correction=0)) <= 1e-12:
        return returns_N.new_zeros(())
    return 1.0 - (returns_N - values_N).var(correction=0) / spread
