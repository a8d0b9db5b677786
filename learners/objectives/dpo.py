"""Direct preference optimisation on a fixed data set (Rafailov et al. 2023), with soft labels.

    policy = trainable(PolicySource(model="models/policy"), config)
    pairs = with_reference(policy, pairs)
    report = run_course(DPOObjective(policy, config), pairs, config)

The reference is the policy before training. Its log-probs are computed once, by `with_reference`, and travel with the
pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.policy import Policy
from learners.core.ranks import Ranks
from learners.direct.config import DirectConfig
from learners.direct.pair_loss import pair_loss
from learners.direct.pairs import AnswerPair, batch_of_pairs
from learners.direct.rows import Answers, Pair, PairRows, answer_logprobs, whole_groups

Pairs = Sequence[AnswerPair]


class DPOObjective(Objective[Pairs, PairRows]):
    """The preferences of the data set against those that the policy's log-ratios express."""

    def __init__(self, policy: Policy, config: DirectConfig) -> None:
        self.policy, self.config = policy, config
        self.layout, self.ranks = policy.layout, policy.ranks

    def parts(self) -> dict[str, Part]:
        """The policy."""
        return {"policy": Part(self.policy.model, self.config.learning_rate)}

    def divide(self, ranks: Ranks) -> None:
        self.policy.divide()
        super().divide(ranks)

    def cost(self, microbatch: PairRows) -> float:
        return self.layout.cost(microbatch.answers.microbatch)

    def prepare(self, batch: Pairs, context: StepContext[PairRows]) -> Prepared[PairRows]:
        """One optimiser step. Raises ValueError for pairs whose reference log-probs are not known."""
        arrays = batch_of_pairs(batch)
        references = [one.reference for one in batch]
        if None in references:
            raise ValueError("got pairs without reference log-probs, expected them; call with_reference first")
        flat = np.array([value for pair in references for value in pair or ()])
        rows = []
        for microbatch in whole_groups(self.layout, arrays, range(arrays.num_rollouts), self.policy.device):
            answers = Answers.of(arrays, microbatch)
            pairs = [
                Pair(2 * i, 2 * i + 1, batch[i].p, batch[i].weight)
                for i in sorted({int(arrays.group_R[r]) for r in answers.rollouts})
            ]
            rows.append(PairRows(answers=answers, pairs=pairs, reference_R=answers.values(flat)))
        return Prepared(minibatches=[Minibatch(rows, sum(one.weight for one in batch))])

    def loss(self, microbatch: PairRows, denominator: float) -> Iterator[Loss]:
        """The mean over the weights of the minibatch."""
        logprobs_M = self.policy.logprobs(microbatch.answers.microbatch)
        yield pair_loss(microbatch, logprobs_M, denominator, self.config)


def with_reference(policy: Policy, pairs: Pairs) -> list[AnswerPair]:
    """The pairs with the log-probs of the present policy as those of the reference."""
    arrays = batch_of_pairs(pairs)
    found = answer_logprobs(policy, policy.layout, arrays, range(arrays.num_rollouts))
    return [replace(one, reference=(float(found[2 * i]), float(found[2 * i + 1]))) for i, one in enumerate(pairs)]
