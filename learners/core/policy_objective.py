"""The base of objectives that train the published policy on labelled groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learners.core.batch import Batch
from learners.core.config import TrainerConfig
from learners.core.measure import batch_metrics, groups_without_advantages
from learners.core.objective import Minibatch, Objective, Part, Prepared, StepContext
from learners.core.packing import Layout, Microbatch
from learners.core.policy import Policy
from learners.core.ranks import ALONE, Ranks
from solon.errors import RunFailedError
from solon.records import NO_FILTERS, Filters, TrainingGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """The model that trains, and how its rollouts are sampled. `PolicySource(model="models/policy")`"""

    model: str
    temperature: float = 1.0
    filters: Filters = NO_FILTERS
    end_ids: Sequence[int] = ()
    """Tokens that end an answer, for `filters.min_tokens`."""
    ranks: Ranks = ALONE
    """The processes that train it together."""


class PolicyObjective(Objective[Sequence[TrainingGroup], Microbatch]):
    """Owns the policy; subclasses define its loss.

    A subclass that another module builds takes (config, source) and nothing else.
    """

    remedy = "lower learn.learning_rate, or look at the rewards and log-probs of this batch"

    def __init__(
        self, config: TrainerConfig, source: PolicySource, *, reference: bool = False, backbone: bool = False
    ) -> None:
        """reference: keep a frozen copy for a KL; backbone: make a copy without head for a critic."""
        self.config = config
        self.policy = Policy(
            config,
            model=source.model,
            temperature=source.temperature,
            filters=source.filters,
            end_ids=source.end_ids,
            reference=reference,
            backbone=backbone,
            offload_reference=config.offload_reference,
            ranks=source.ranks,
        )

    @property
    def layout(self) -> Layout:
        """How rollouts are packed."""
        return self.policy.layout

    def divide(self, ranks: Ranks) -> None:
        self.policy.divide()
        super().divide(ranks)

    def cost(self, microbatch: Microbatch) -> float:
        return self.layout.cost(microbatch)

    def parts(self) -> dict[str, Part]:
        """Only the policy."""
        return {"policy": Part(self.policy.model, self.config.learning_rate)}

    def completed(
        self, batch: Sequence[TrainingGroup], prepared: Prepared[Microbatch], context: StepContext[Microbatch]
    ) -> Prepared[Microbatch]:
        """Where `prepare` names no groups: metrics of the batch, and its groups without advantages."""
        if prepared.groups:
            return prepared
        arrays = self.batch_of(batch)
        metrics = batch_metrics(arrays, context.step, self.microbatches(arrays, arrays.trained_groups()))
        return replace(prepared, metrics={**metrics, **prepared.metrics}, groups=groups_without_advantages(batch))

    def require_close(self, metrics: Mapping[str, float], step: int) -> None:
        apart, limit = metrics.get("reference_log_ratio/mean"), self.config.kl_limit
        if apart is not None and limit is not None and apart > limit:
            raise RunFailedError(
                f"learning stopped before step {step}: the policy is {apart:.3g} nats a token away from its "
                f"reference, learn.kl_limit = {limit:g}: it has diverged; lower learn.learning_rate or raise the "
                "weight of the KL, and start again from a checkpoint before it"
            )

    def batch_of(self, groups: Sequence[TrainingGroup], **options: Any) -> Batch:
        """The groups as arrays; options: as for `Batch.of`. Raises RunFailedError when no rollout has a reward."""
        return Batch.of(groups, vocabulary=self.policy.vocabulary, **options)

    def microbatches(self, batch: Batch, groups: Sequence[int]) -> list[Microbatch]:
        """The trained rollouts of some groups, packed."""
        return self.layout.microbatches(batch, batch.rollouts_of(groups), self.policy.device)

    def minibatches(self, batch: Batch, context: StepContext[Microbatch]) -> Iterator[Minibatch[Microbatch]]:
        """In every epoch, the batch's groups in a new order, cut into minibatches of nearly equal size; sums are
        divided by their response tokens."""
        groups = np.array(batch.trained_groups())
        for epoch in range(self.config.epochs):
            shuffled = np.random.default_rng((context.seed, context.step, epoch)).permutation(groups)
            for part in np.array_split(shuffled, min(self.config.minibatches, len(groups))):
                microbatches = self.microbatches(batch, part.tolist())
                yield Minibatch(microbatches, sum(microbatch.num_tokens for microbatch in microbatches))
