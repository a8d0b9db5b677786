"""Direct preference optimisation on the labelled groups of a run (Guo et al. 2024; Noukhovitch et al. 2024).

The sampler of an answer only decides which pairs are seen: with enough of them the best policy is the same, whatever
their staleness, so there is no importance weight. The reference is the policy at the start of the run.

R rollouts of the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learners.core.batch import Batch
from learners.core.objective import Loss, Minibatch, Prepared, StepContext
from learners.core.packing import Microbatch
from learners.core.policy_objective import PolicyObjective, PolicySource
from learners.direct.config import OnlineDPOConfig
from learners.direct.pair_loss import pair_loss
from learners.direct.rows import Answers, Pair, PairRows, answer_logprobs, whole_groups
from solon.records import NO_FILTERS, TrainingGroup


@dataclass(frozen=True, slots=True)
class _Targets:
    """Of one step."""

    batch: Batch
    pairs: Mapping[int, Sequence[Pair]]
    """By group."""
    reference_R: NDArray[np.float64]


class OnlineDPOObjective(PolicyObjective):
    """Pairs of answers of one group, with soft labels from the difference of their rewards."""

    config: OnlineDPOConfig

    def __init__(self, config: OnlineDPOConfig, source: PolicySource) -> None:
        # Log-probs of policy and reference are those of the whole vocabulary: filters are only how answers were drawn.
        super().__init__(config, replace(source, filters=NO_FILTERS), reference=True)
        self._filtered = bool(source.filters)
        self._beta = config.beta
        self._targets: _Targets | None = None

    def prepare(self, batch: Sequence[TrainingGroup], context: StepContext[Microbatch]) -> Prepared[Microbatch]:
        """Pairs, reference log-probs of their answers, then the minibatches. A group without a clear pair teaches
        nothing."""
        config = self.config
        arrays = self.batch_of(
            batch,
            reward_clip=config.reward_clip,
            truncated=config.truncated,
            truncated_penalty=config.truncated_penalty,
            length_penalty=config.length_penalty,
            length_free=config.length_free,
        )
        pairs = {
            group: found
            for group in arrays.trained_groups()
            if (found := pairs_of(arrays, group, all_of_them=config.pairs == "all", tie=config.tie))
        }
        paired = sorted({rollout for found in pairs.values() for one in found for rollout in (one.first, one.second)})
        reference_R = answer_logprobs(self.policy, self.layout, arrays, paired, reference=True)
        self._targets = _Targets(arrays, pairs, reference_R)
        behaviour_R = np.bincount(arrays.rollout_N, arrays.behaviour_N, arrays.num_rollouts)
        metrics = {
            "paired_groups/share": len(pairs) / len(arrays.trained_groups()),
            "pairs/sum": float(sum(map(len, pairs.values()))),
        }
        if paired and not self._filtered:  # the engine's log-probs are those of the filtered distribution
            # Of fresh samples: the distance from the start that beta alone bounds.
            apart_R = (behaviour_R - reference_R)[paired]
            metrics["kl_reference/mean"] = float(apart_R.mean())
            metrics["reference_log_ratio/mean"] = float(apart_R.sum() / arrays.length_R[paired].sum())
        return Prepared(minibatches=self._pair_minibatches(arrays, pairs, context), metrics=metrics)

    def loss(self, microbatch: Microbatch, denominator: float) -> Iterator[Loss]:
        """The mean over the groups of the minibatch."""
        assert self._targets is not None, "prepare comes before loss"
        targets = self._targets
        answers = Answers.of(targets.batch, microbatch)
        groups = sorted({int(targets.batch.group_R[rollout]) for rollout in answers.rollouts})
        rows = PairRows(
            answers=answers,
            pairs=[pair for group in groups for pair in targets.pairs[group]],
            reference_R=answers.values(targets.reference_R),
        )
        yield pair_loss(rows, self.policy.logprobs(microbatch), denominator, self.config)

    def raise_kl(self, factor: float) -> float:
        """Multiply `beta`; returns the new one."""
        self.config = self.config.model_copy(update={"beta": self.config.beta * factor})
        return self.config.beta

    def counters(self) -> dict[str, float]:
        """The present `beta`, which may have been raised, and the configured one."""
        return {"beta": self.config.beta, "beta_configured": self._beta}

    def restore(self, counters: Mapping[str, float]) -> None:
        """A raised `beta` is kept, unless the configuration has changed."""
        if counters.get("beta_configured", self._beta) == self._beta:
            self.config = self.config.model_copy(update={"beta": counters.get("beta", self._beta)})

    def _pair_minibatches(
        self, batch: Batch, pairs: Mapping[int, Sequence[Pair]], context: StepContext[Microbatch]
    ) -> Iterator[Minibatch[Microbatch]]:
        groups = np.array(sorted(pairs), np.int64)
        for epoch in range(self.config.epochs):
            shuffled = np.random.default_rng((context.seed, context.step, epoch)).permutation(groups)
            for part in np.array_split(shuffled, max(1, min(self.config.minibatches, len(groups)))):
                found = [pair for group in part.tolist() for pair in pairs[group]]
                rollouts = sorted({rollout for pair in found for rollout in (pair.first, pair.second)})
                microbatches = whole_groups(self.layout, batch, rollouts, self.policy.device)
                yield Minibatch(microbatches, sum(pair.weight for pair in found))


def pairs_of(batch: Batch, group: int, *, all_of_them: bool, tie: float) -> list[Pair]:
    """The better answer first, with p = s(difference of the rewards); pairs with p < 1/2 + tie are left out. Either the
    best and the worst answer of a group, or all pairs; they share a weight of 1."""
    rewards = batch.baseline_rewards[group]
    places = [int(r) for r in np.flatnonzero(batch.group_R == group)]
    scored = [(r, value) for r in places if (value := rewards[int(batch.member_R[r])]) is not None]
    scored.sort(key=lambda one: (-one[1], one[0]))
    candidates = list(itertools.combinations(scored, 2)) if all_of_them else [(scored[0], scored[-1])] if scored else []
    found = [(a, b, 1 / (1 + math.exp(-min(high - low, 30.0)))) for (a, high), (b, low) in candidates if a != b]
    clear = [(a, b, p) for a, b, p in found if p > 0.5 + tie]
    return [Pair(a, b, p, 1 / len(clear)) for a, b, p in clear]
