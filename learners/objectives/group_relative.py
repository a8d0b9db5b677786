"""Group-relative policy optimisation: a rollout is compared with the others of its group; no critic.

N: response tokens of the batch; M: of a microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learners.core.batch import Batch
from learners.core.objective import Metrics, StepContext
from learners.core.packing import Microbatch
from learners.core.policy import Scored
from learners.policy_gradient.losses import kl_loss
from learners.policy_gradient.objective import PolicyGradient
from learners.policy_gradient.targets import Advantages, Metric, Scores, Targets, group_advantages


class GroupRelativeObjective(PolicyGradient):
    """The reward less the mean of the group, with the KL to the reference as a term of the loss (Shao et al. 2024)."""

    def advantages(
        self, batch: Batch, everything: Sequence[Microbatch], scores: Scores, context: StepContext[Microbatch]
    ) -> tuple[Advantages, Metric]:
        """Equal for all tokens of a rollout."""
        return Advantages(advantages_N=group_advantages(self.config, batch, scores.weights_N > 0)), {}

    def penalty(
        self, scored: Scored, weights_M: Tensor, targets: Targets, microbatch: Microbatch, denominator: float
    ) -> tuple[Tensor | None, Metrics]:
        """The KL to the reference, if there is one."""
        if targets.reference_N is None:
            return None, {}
        index_M = microbatch.index_M
        kl, metrics = kl_loss(
            scored.logprobs_M,
            targets.prox_N[index_M],
            weights_M,
            targets.reference_N[index_M],
            denominator=denominator,
            estimator=self.config.kl_estimator,
        )
        return self.config.kl_coefficient * kl, metrics
