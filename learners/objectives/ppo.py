"""Proximal policy optimisation with a critic and generalised advantage estimation.

The critic is a network of its own, or a head on the policy's hidden states: then one pass gives log-probs and values,
and one loss has both.

N: response tokens of the batch; M: of a microbatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from learners.core.batch import Batch
from learners.core.objective import Loss, Metrics, Minibatch, Part, StepContext
from learners.core.packing import Microbatch
from learners.core.policy import Scored
from learners.core.policy_objective import PolicySource
from learners.core.sharding import release
from learners.networks.critic import Critic, ValueHead
from learners.policy_gradient.config import PolicyGradientConfig
from learners.policy_gradient.losses import value_loss
from learners.policy_gradient.objective import PolicyGradient
from learners.policy_gradient.targets import Advantages, Metric, Scores, Targets, TokenRewards, gather, mean_of


class PPOObjective(PolicyGradient):
    """The KL to the reference is part of every token's reward, so that the critic learns to expect it."""

    def __init__(self, config: PolicyGradientConfig, source: PolicySource) -> None:
        super().__init__(config, source, backbone=config.critic == "own")
        self.critic: Critic | ValueHead
        if config.critic == "own":
            self.critic = Critic(self.policy.backbone, self.policy.hidden)
        else:
            self.critic = self.beside = ValueHead(self.policy.hidden, config.value_coefficient)
        if self.policy.ranks.is_alone:
            self.critic.to(self.policy.device)

    def parts(self) -> dict[str, Part]:
        """The policy and the critic."""
        return super().parts() | {"critic": Part(self.critic, self.config.critic_learning_rate)}

    def advantages(
        self, batch: Batch, everything: Sequence[Microbatch], scores: Scores, context: StepContext[Microbatch]
    ) -> tuple[Advantages, Metric]:
        """GAE over the values of the live critic, which the first batch warms up."""
        kept_N = scores.weights_N > 0
        rewards = TokenRewards(self.config, batch, scores.prox_N, scores.reference_N)
        if context.step == 0:
            self._start_critic(everything, rewards.to_go_N(), kept_N & rewards.has_return_N(), context)
        values_N = scores.live_values_N
        if values_N is None or context.step == 0:
            with torch.no_grad():
                (values_N,) = gather(self.policy, batch, everything, lambda m: (self._values(m),))
        advantages_N, returns_N, metrics = rewards.advantages(values_N, kept_N)
        return Advantages(advantages_N=advantages_N, values_N=values_N, returns_N=returns_N), metrics

    def loss(self, microbatch: Microbatch, denominator: float) -> Iterator[Loss]:
        """The policy's loss, then that of a critic of its own."""
        yield from super().loss(microbatch, denominator)
        if self.beside is None:
            assert self._targets is not None
            yield self._value_loss(self._values(microbatch), self._targets, microbatch, denominator)

    def penalty(
        self, scored: Scored, weights_M: Tensor, targets: Targets, microbatch: Microbatch, denominator: float
    ) -> tuple[Tensor | None, Metrics]:
        """The loss of a critic that shares the policy's body."""
        if scored.values_M is None:
            return None, {}
        return self._value_loss(scored.values_M, targets, microbatch, denominator)

    def _value_loss(self, values_M: Tensor, targets: Targets, microbatch: Microbatch, denominator: float) -> Loss:
        index_M = microbatch.index_M
        assert targets.values_N is not None
        assert targets.returns_N is not None
        return value_loss(
            values_M,
            targets.values_N[index_M],
            targets.returns_N[index_M],
            denominator=denominator,
            clip=self.config.value_clip,
            kept_N=targets.weights_N[index_M] > 0,
        )

    def _values(self, microbatch: Microbatch) -> Tensor:
        if self.beside is not None:
            return self.policy.values(microbatch, self.beside)
        with self.policy.autocast():
            values_M: Tensor = self.critic(microbatch)
        return values_M

    def _values_apart(self, microbatch: Microbatch) -> Tensor:
        """Values whose gradient does not reach the policy."""
        if self.beside is None:
            return self._values(microbatch)
        with torch.no_grad():
            hidden_MH = self.policy.values(microbatch, torch.clone)
        return self.beside(hidden_MH)

    def _start_critic(
        self,
        everything: Sequence[Microbatch],
        returns_N: Tensor,
        kept_N: Tensor,
        context: StepContext[Microbatch],
    ) -> None:
        """Train a new critic on the mean return of the first batch, then for `critic_warmup_steps` steps."""
        release(self.critic)  # scoring may have gathered it, and a gathered copy is not what trains
        self.critic.start_at(mean_of(returns_N, kept_N))

        def warm_up(microbatch: Microbatch, denominator: float) -> Iterator[Loss]:
            values_M, index_M = self._values_apart(microbatch), microbatch.index_M
            loss, _ = value_loss(
                values_M,
                values_M.detach(),
                returns_N[index_M],
                denominator=denominator,
                clip=None,
                kept_N=kept_N[index_M],
            )
            yield loss, {"critic warm-up": loss.detach()}

        for _ in range(self.config.critic_warmup_steps):
            context.update(Minibatch(everything, len(returns_N)), warm_up, "critic")
