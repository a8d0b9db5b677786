"""A reward model taught by soft preferences between two answers.

    loss = -w [p log s(d) + (1 - p) log s(-d)],   d = r(first) - r(second)

This is the Bradley-Terry likelihood (Bradley and Terry 1952) for a judge who is sure with probability p; a tie has
p = 1/2 and teaches that there is no difference.

    report = fit(RewardModel.load("models/policy", pad_id=0), pairs, RewardModelConfig(epochs=2))

N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from learners.core.course import CourseConfig, CourseReport, run_course
from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.packing import by_length
from learners.networks.reward_model import PreferencePair, RewardModel
from solon.errors import InputError

Pairs = Sequence[PreferencePair]


class RewardModelConfig(CourseConfig):
    """How a reward model learns. `RewardModelConfig(learning_rate=1e-5, epochs=1)`

    Reward models overfit from the second epoch on, unless they are tiny.
    """

    head_learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of the scalar head, which starts from nothing; `learning_rate` is the backbone's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport(CourseReport):
    """The result of a fit. A model that knows nothing has a loss of log 2 = 0.693."""

    pairs: int


class RewardModelObjective(Objective[Pairs, Pairs]):
    """The Bradley-Terry likelihood of soft preferences."""

    def __init__(self, model: RewardModel, config: RewardModelConfig) -> None:
        self.model, self.config = model, config

    def parts(self) -> dict[str, Part]:
        """The backbone and the scalar head."""
        network = self.model.network
        return {
            "backbone": Part(network.base_model, self.config.learning_rate),
            "head": Part(network.score, self.config.head_learning_rate),
        }

    def prepare(self, batch: Pairs, context: StepContext[Pairs]) -> Prepared[Pairs]:
        """One optimiser step on the pairs, in microbatches of similar length."""
        sizes = [max(len(pair.first), len(pair.second)) for pair in batch]
        rows = by_length(sizes, self.config.max_tokens_per_microbatch // 2, self.ranks.size)
        microbatches = [[batch[i] for i in some] for some in rows]
        return Prepared(minibatches=[Minibatch(microbatches, sum(pair.weight for pair in batch))])

    def cost(self, microbatch: Pairs) -> float:
        return len(microbatch) * max(max(len(pair.first), len(pair.second)) for pair in microbatch)

    def loss(self, microbatch: Pairs, denominator: float) -> Iterator[Loss]:
        """Both answers of every pair in one forward pass."""
        sequences = [*(pair.first for pair in microbatch), *(pair.second for pair in microbatch)]
        first_N, second_N = self.model(sequences).chunk(2)
        p_N = first_N.new_tensor([pair.p for pair in microbatch])
        weights_N = first_N.new_tensor([pair.weight for pair in microbatch])
        loss = preference_loss(first_N - second_N, p_N, weights_N) / denominator
        yield loss, {"loss/mean": loss.detach()}


def preference_loss(margins_N: Tensor, p_N: Tensor, weights_N: Tensor) -> Tensor:
    """Sum over pairs of -w [p log s(d) + (1 - p) log s(-d)]; the caller divides by the sum of all weights.

    margins_N: r(first) - r(second). Its gradient is w (s(d) - p), so the loss is least where s(d) = p.
    """
    losses_N = functional.binary_cross_entropy_with_logits(margins_N, p_N, reduction="none")
    return (weights_N * losses_N).sum()


def fit(model: RewardModel, pairs: Pairs, config: RewardModelConfig) -> FitReport:
    """Fit the model to the pairs, in place; it is divided among its ranks, which all call this together. The same
    model, pairs and configuration on one machine give one result.

    Raises InputError when no pair counts, RunFailedError when the loss is not finite.
    """
    pairs = [pair for pair in pairs if pair.weight > 0]
    if not pairs:
        raise InputError("got no preference pairs with a weight above 0, expected some; label more pairs")
    model.train()
    objective = RewardModelObjective(model, config)
    objective.divide(model.ranks)
    try:
        report = run_course(objective, pairs, config)
    finally:
        model.eval()
    return FitReport(steps=report.steps, first_loss=report.first_loss, last_loss=report.last_loss, pairs=len(pairs))
