"""The clipped, importance-weighted policy gradient that `ppo` and `group_relative` share.

N: response tokens of the batch; M: of a microbatch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from learners.core.batch import Batch
from learners.core.head import Beside
from learners.core.measure import batch_metrics
from learners.core.objective import Loss, Metrics, Prepared, StepContext
from learners.core.packing import Microbatch
from learners.core.policy import Scored
from learners.core.policy_objective import PolicyObjective, PolicySource
from learners.policy_gradient.config import PolicyGradientConfig
from learners.policy_gradient.losses import policy_loss
from learners.policy_gradient.measure import trained_groups
from learners.policy_gradient.targets import Advantages, Metric, Scores, Targets, mean_of, policy_targets
from solon.records import TrainingGroup


class PolicyGradient(PolicyObjective):
    """Asynchronous PPO from labelled groups; subclasses give the advantages.

    pi_prox, the reference and the values are computed once per batch, then every minibatch moves the networks. The
    order of the groups does not matter.
    """

    config: PolicyGradientConfig

    def __init__(self, config: PolicyGradientConfig, source: PolicySource, *, backbone: bool = False) -> None:
        super().__init__(config, source, reference=config.kl_coefficient > 0, backbone=backbone)
        self._kl_configured = config.kl_coefficient
        self._targets: Targets | None = None
        self.beside: Beside | None = None
        """A value head on the policy's own hidden states; None: values, if any, come from a network of their own."""

    @abstractmethod
    def advantages(
        self, batch: Batch, everything: Sequence[Microbatch], scores: Scores, context: StepContext[Microbatch]
    ) -> tuple[Advantages, Metric]:
        """The advantages of a batch, given the policy's scores; `everything`: the batch, packed. Tokens of weight 0 are
        in no mean."""

    def prepare(self, batch: Sequence[TrainingGroup], context: StepContext[Microbatch]) -> Prepared[Microbatch]:
        """Scores and advantages of the whole batch, then its minibatches."""
        arrays = self.batch_of(
            batch,
            reward_clip=self.config.reward_clip,
            truncated=self.config.truncated,
            truncated_penalty=self.config.truncated_penalty,
            length_penalty=self.config.length_penalty,
            length_free=self.config.length_free,
        )
        everything = self.microbatches(arrays, arrays.trained_groups())
        targets, metrics = self.targets(arrays, everything, context)
        self._targets = targets
        return Prepared(
            minibatches=self.minibatches(arrays, context),
            metrics=metrics | batch_metrics(arrays, context.step, everything),
            groups=trained_groups(batch, arrays, targets),
        )

    def targets(
        self, batch: Batch, everything: Sequence[Microbatch], context: StepContext[Microbatch]
    ) -> tuple[Targets, Metric]:
        """The targets of all minibatches of a step."""
        scores, metrics = policy_targets(self.config, self.policy, batch, everything, context.step, values=self.beside)
        found, more = self.advantages(batch, everything, scores, context)
        metrics |= more
        metrics["advantage_abs/mean"] = mean_of(found.advantages_N.abs(), scores.weights_N > 0)
        targets = Targets(
            prox_N=scores.prox_N,
            weights_N=scores.weights_N,
            reference_N=scores.reference_N,
            advantages_N=found.advantages_N,
            values_N=found.values_N,
            returns_N=found.returns_N,
        )
        return targets, metrics

    def loss(self, microbatch: Microbatch, denominator: float) -> Iterator[Loss]:
        """The clipped surrogate, with entropy bonus and `penalty`."""
        assert self._targets is not None, "prepare comes before loss"
        targets, config, index_M = self._targets, self.config, microbatch.index_M
        scored = self.policy.score(microbatch, entropy=bool(config.entropy_bonus or config.bypass), values=self.beside)
        weights_M = targets.weights_N[index_M]
        if scored.outside_M is not None:
            # The policy would no longer sample them: pi / pi_prox is 0 there, and has no gradient.
            weights_M = weights_M.masked_fill(scored.outside_M, 0.0)
        loss, metrics = policy_loss(
            scored.logprobs_M,
            targets.prox_N[index_M],
            weights_M,
            targets.advantages_N[index_M],
            denominator=denominator,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        if scored.entropy_M is not None:
            entropy = (scored.entropy_M * (weights_M > 0)).sum() / denominator
            if config.entropy_bonus:
                loss = loss - config.entropy_bonus * entropy
            metrics["update_entropy/mean"] = entropy.detach()
        penalty, found = self.penalty(scored, weights_M, targets, microbatch, denominator)
        yield (loss if penalty is None else loss + penalty), metrics | found

    def penalty(
        self, scored: Scored, weights_M: Tensor, targets: Targets, microbatch: Microbatch, denominator: float
    ) -> tuple[Tensor | None, Metrics]:
        """A further term of the policy's loss; None: there is none."""
        return None, {}

    def raise_kl(self, factor: float) -> float:
        """Multiply `kl_coefficient`; returns the new one."""
        self.config = self.config.model_copy(update={"kl_coefficient": self.config.kl_coefficient * factor})
        return self.config.kl_coefficient

    def counters(self) -> dict[str, float]:
        """The KL coefficient, which may have been raised."""
        return {"kl_coefficient": self.config.kl_coefficient, "kl_configured": self._kl_configured}

    def restore(self, counters: Mapping[str, float]) -> None:
        """A raised coefficient is kept, unless the configuration has changed."""
        # The coefficient may have been raised since the run began. A configured value that differs now wins.
        if counters.get("kl_configured", self._kl_configured) == self._kl_configured:
            self.config = self.config.model_copy(update={"kl_coefficient": counters["kl_coefficient"]})
