"""Kahneman-Tversky optimisation: a policy learns from answers that are rated one by one (Ethayarajh et al. 2024).

R answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.policy import Policy
from learners.core.ranks import Ranks
from learners.direct.config import RatingConfig
from learners.direct.losses import rating_anchor, rating_losses
from learners.direct.pairs import RatedAnswer, batch_of_ratings
from learners.direct.rows import Answers, answer_logprobs, whole_groups

Ratings = Sequence[RatedAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedRows:
    """Rated answers of one forward pass."""

    answers: Answers
    good_R: Tensor
    """Probability that each is good."""
    weights_R: Tensor
    reference_R: Tensor
    """Log-probs under the reference, nats."""
    anchor: Tensor
    """Of the minibatch, nats."""


class KTOObjective(Objective[Ratings, RatedRows]):
    """Good answers above, bad ones below an anchor: the KL from the reference, as answers to other prompts show it.

    The policy must have a reference: `Policy(..., reference=True)`.
    """

    def __init__(self, policy: Policy, config: RatingConfig) -> None:
        if not policy.has_reference:
            raise ValueError("got a policy without a reference, expected Policy(..., reference=True)")
        self.policy, self.config = policy, config
        self.layout, self.ranks = policy.layout, policy.ranks

    def parts(self) -> dict[str, Part]:
        """The policy."""
        return {"policy": Part(self.policy.model, self.config.learning_rate)}

    def divide(self, ranks: Ranks) -> None:
        self.policy.divide()
        super().divide(ranks)

    def cost(self, microbatch: RatedRows) -> float:
        return self.layout.cost(microbatch.answers.microbatch)

    def prepare(self, batch: Ratings, context: StepContext[RatedRows]) -> Prepared[RatedRows]:
        """One optimiser step, after passes over each answer and over each prompt with the answer of the next row that
        answers another prompt."""
        arrays = batch_of_ratings(batch)
        everything = range(arrays.num_rollouts)
        reference_R = answer_logprobs(self.policy, self.layout, arrays, everything, reference=True)
        anchor = self._anchor(mismatched(batch))
        good, weights = (np.array([getattr(one, name) for one in batch]) for name in ("good", "weight"))
        rows = [
            RatedRows(
                answers=answers,
                good_R=answers.values(good),
                weights_R=answers.values(weights),
                reference_R=answers.values(reference_R),
                anchor=anchor,
            )
            for microbatch in whole_groups(self.layout, arrays, everything, self.policy.device)
            for answers in (Answers.of(arrays, microbatch),)
        ]
        return Prepared(minibatches=[Minibatch(rows, float(weights.sum()))], metrics={"anchor/mean": float(anchor)})

    def _anchor(self, rows: Ratings) -> Tensor:
        """z over these rows; 0, its least value, where there is none."""
        if not rows:
            return torch.zeros((), device=self.policy.device)
        other = batch_of_ratings(rows)
        policy_R, base_R = (
            answer_logprobs(self.policy, self.layout, other, range(other.num_rollouts), reference=which)
            for which in (False, True)
        )
        return rating_anchor(torch.from_numpy(policy_R - base_R)).float().to(self.policy.device)

    def loss(self, microbatch: RatedRows, denominator: float) -> Iterator[Loss]:
        """The mean over the weights of the minibatch."""
        answers, config = microbatch.answers, self.config
        ratio_R = answers.sums(self.policy.logprobs(answers.microbatch)) - microbatch.reference_R
        losses_R = rating_losses(
            ratio_R,
            microbatch.good_R,
            microbatch.anchor,
            beta=config.beta,
            desirable=config.desirable,
            undesirable=config.undesirable,
        )
        loss = (microbatch.weights_R * losses_R).sum() / denominator
        yield loss, {"loss/mean": loss.detach()}


def mismatched(batch: Ratings) -> list[RatedAnswer]:
    """Every prompt with the answer of the next row that answers another prompt; a row is left out when there is none,
    as in a last batch of one."""
    found = []
    for place, one in enumerate(batch):
        later = (batch[(place + step) % len(batch)] for step in range(1, len(batch)))
        other = next((each for each in later if each.prompt != one.prompt), None)
        if other is not None:
            found.append(replace(one, answer=other.answer))
    return found
