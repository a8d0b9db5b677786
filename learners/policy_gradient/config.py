"""Settings of off-policy policy gradients, with the combinations that are refused. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from learners.core.config import RewardSettings, TrainerConfig


class PolicyGradientConfig(RewardSettings, TrainerConfig):
    """How the policy learns from rewards. `PolicyGradientConfig(advantages="group", learning_rate=1e-6)`

    The Kullback-Leibler penalty to the frozen reference follows `advantages`. With `gae` it is a per-token reward,
    -kl_coefficient * (log pi_prox - log pi_ref), so that the critic can predict it (Ziegler et al. 2019). With `group`
    there is no per-token reward, and it is a term of the loss (`kl_estimator`).
    """

    advantages: Literal["gae", "group"] = "gae"
    """`gae`: a critic and generalised advantage estimation. `group`: rewards relative to the group, no critic."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (gae)."""
    lam: float = Field(1.0, ge=0, le=1)
    """Lambda of GAE; 1 trusts the reward alone, below 1 trusts the critic more."""
    normalize_advantages: bool = True
    """gae: whiten over the batch's tokens. group: divide by the standard deviation of the group."""
    advantage_epsilon: float = Field(1e-4, gt=0)
    """group: added to the standard deviation, in reward. Where a judge's verdicts differ by less, as in a group whose
    answers all break a principle, the difference is noise and should move the policy little."""
    kl_coefficient: float = Field(0.02, ge=0)
    """Weight of the KL to the frozen reference, reward per nat; 0 loads no reference."""
    kl_estimator: Literal["weighted", "k2", "k3"] = "weighted"
    """group: the KL in the loss. `weighted`: k3 times the live ratio pi / mu; its gradient is that of KL(pi ||
    reference) on policy and off. `k2`: half the squared log ratio; exact on policy only. `k3`: without the ratio
    (Shao et al. 2024); the gradient of another divergence, as in many published runs."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio pi / pi_prox has no gradient below 1 - clip_low."""
    clip_high: float = Field(0.28, gt=0)
    """The ratio pi / pi_prox has no gradient above 1 + clip_high."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Bound on the ratio where the advantage is negative (Ye et al. 2020); "none": no bound."""
    importance: Literal["token", "icepop", "sequence", "none"] = "token"
    """How pi_prox / mu weighs a token: `token` truncates it at importance_cap, `icepop` drops tokens outside
    icepop_low..icepop_high, `sequence` truncates the product over the rollout, `none` needs bypass."""
    importance_cap: float = Field(2.0, ge=1)
    """Largest importance weight (token, sequence)."""
    icepop_low: float = Field(0.5, gt=0, lt=1)
    """Ratios below get weight 0 (icepop)."""
    icepop_high: float = Field(2.0, gt=1)
    """Ratios above get weight 0 (icepop)."""
    geometric_mask: float | None = Field(None, gt=0)
    """Rollouts whose mean log ratio exceeds this, either way, are masked (nats per token); None: only measured."""
    max_token_staleness: int | None = Field(None, ge=0)
    """Tokens generated more than this many versions before the step are masked; None: none are."""
    bypass: bool = False
    """Use mu for pi_prox and save one forward pass; only with one optimiser step per batch."""

    critic: Literal["own", "shared"] = "own"
    """gae: `own`: a copy of the policy's body with a value head, trained apart. `shared`: a value head on the policy's
    own last hidden states; no second network, no second pass."""
    value_coefficient: float = Field(0.1, ge=0)
    """Weight of the value loss in the gradient of the body (shared); 0: the body does not learn from values. The value
    head learns at critic_learning_rate whatever the weight."""
    critic_learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate of the critic (AdamW). A value head alone, which starts at nothing, needs a higher one, such
    as 1e-3."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the policy's entropy in the loss, per nat."""

    value_clip: float | None = Field(None, gt=0)
    """How far a value may move from its value at the start of the step before its gradient stops, in reward;
    None: unbounded, since rewards have no natural scale (and see Andrychowicz et al. 2021)."""
    critic_warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of the critic alone on the first batch, before its values are used."""

    @model_validator(mode="after")
    def _combinations_work(self) -> Self:
        if self.bypass and self.steps_per_batch > 1:
            raise ValueError(
                f"bypass with {self.epochs} epochs x {self.minibatches} minibatches takes {self.steps_per_batch} "
                "optimiser steps per batch, expected 1: pi_prox cannot stand still while the policy moves; "
                "set epochs = 1 and minibatches = 1, or bypass = false"
            )
        if self.bypass and self.importance != "none":
            raise ValueError(
                f"bypass with importance = {self.importance!r}, expected 'none': with pi_prox = mu every "
                "importance weight is 1; set importance = 'none', or bypass = false"
            )
        if not self.bypass and self.importance == "none":
            raise ValueError(
                "importance = 'none' without bypass leaves the gap between the engine and the trainer "
                "uncorrected, expected 'token', 'icepop' or 'sequence'; choose one of them, or set bypass = true "
                "with one optimiser step per batch"
            )
        if self.advantages == "group" and (self.critic_warmup_steps or self.value_clip is not None):
            raise ValueError(
                "critic_warmup_steps or value_clip with advantages = 'group', which has no critic; "
                "remove them, or set advantages = 'gae'"
            )
        if self.offload_reference and not self.kl_coefficient:
            raise ValueError(
                "offload_reference with kl_coefficient = 0, which loads no reference; remove one of the two"
            )
        if self.advantages == "group" and self.critic == "shared":
            raise ValueError(
                "critic = 'shared' with advantages = 'group', which has no critic; remove it, or set advantages = 'gae'"
            )
        if self.critic == "own" and self.value_coefficient != type(self).model_fields["value_coefficient"].default:
            raise ValueError(
                f"value_coefficient = {self.value_coefficient:g} with critic = 'own', whose loss does not reach the "
                "policy; remove it, or set critic = 'shared'"
            )
        if self.truncated == "bootstrap" and self.advantages == "group":
            raise ValueError(
                "truncated = 'bootstrap' with advantages = 'group', which has no critic to ask; "
                "set truncated = 'keep', 'mask' or 'penalise', or advantages = 'gae'"
            )
        return self
