"""Answers laid out so that all answers to a prompt share a forward pass, and sums of their log-probs.

R answers of a microbatch, M their tokens, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.core.agreement import blame
from learners.core.batch import Batch
from learners.core.packing import Layout, Microbatch, Row
from learners.core.policy import Policy
from learners.core.ranks import divided


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers of a batch, by their index among its rollouts."""

    first: int
    second: int
    p: float
    """Probability that the first is the better one."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of one forward pass."""

    microbatch: Microbatch
    rollouts: NDArray[np.int64]
    """Indices in the batch, [R], ascending."""
    place_M: Tensor
    """Place among `rollouts` of every token."""
    tokens_R: Tensor
    """Number of tokens of each answer, float32."""

    @classmethod
    def of(cls, batch: Batch, microbatch: Microbatch) -> Answers:
        """The answers that a microbatch of the batch consists of."""
        device = microbatch.index_M.device
        rollout_M = batch.rollout_N[microbatch.index_M.cpu().numpy()]
        here, place_M = np.unique(rollout_M, return_inverse=True)
        return cls(
            microbatch=microbatch,
            rollouts=here,
            place_M=torch.from_numpy(place_M).to(device),
            tokens_R=torch.tensor(batch.length_R[here], dtype=torch.float32, device=device),
        )

    def sums(self, logprobs_M: Tensor) -> Tensor:
        """Log-probs of whole answers, [R]."""
        return logprobs_M.new_zeros(len(self.rollouts)).index_add(0, self.place_M, logprobs_M)

    def places(self, rollouts: Sequence[int]) -> Tensor:
        """Places of some rollouts of the batch among those here."""
        return torch.from_numpy(np.searchsorted(self.rollouts, np.asarray(rollouts))).to(self.place_M.device)

    def values(self, values_R: NDArray[np.float64]) -> Tensor:
        """A number for each rollout of the batch, of those here, float32."""
        return torch.tensor(values_R[self.rollouts], dtype=torch.float32, device=self.place_M.device)


def whole_groups(layout: Layout, batch: Batch, rollouts: Sequence[int], device: torch.device) -> list[Microbatch]:
    """The given rollouts, with all of a group in one microbatch; a group that exceeds the limit is alone in its own."""
    rows = layout.rows(batch, rollouts)
    bins = divided(
        lambda limit: list(_bins(rows, batch, rollouts, limit)),
        lambda one: layout.work(one.rows, one.width),
        most=layout.max_tokens,
        total=sum(row.length for row in rows),
        ranks=layout.ranks,
    )
    return [layout.in_one(batch, one.rollouts, device) for one in bins]


@dataclass(frozen=True, slots=True)
class _Bin:
    """The rollouts of a microbatch, and its rectangle."""

    rollouts: list[int]
    rows: int
    width: int


def _bins(laid_out: Sequence[Row], batch: Batch, rollouts: Sequence[int], max_tokens: int) -> Iterator[_Bin]:
    """Rollouts of whole groups, the widest first, whose rectangle is within the limit."""
    groups: dict[int, tuple[int, int]] = {}
    for row in laid_out:
        width, count = groups.get(row.group, (0, 0))
        groups[row.group] = max(width, row.length), count + 1
    members = {group: [r for r in sorted(rollouts) if batch.group_R[r] == group] for group in groups}
    chosen: list[int] = []
    widest, rows = 0, 0
    for group in sorted(groups, key=lambda one: (-groups[one][0], one)):
        width, count = groups[group]
        if chosen and max(widest, width) * (rows + count) > max_tokens:
            yield _Bin(chosen, rows, widest)
            chosen, widest, rows = [], 0, 0
        chosen += members[group]
        widest, rows = max(widest, width), rows + count
    if chosen:
        yield _Bin(chosen, rows, widest)


@torch.no_grad()
def answer_logprobs(
    policy: Policy, layout: Layout, batch: Batch, rollouts: Sequence[int], *, reference: bool = False
) -> NDArray[np.float64]:
    """Log-probs of whole answers under the policy or its reference, nats; 0 for rollouts that were not asked for, [R]
    of the batch."""
    found_R = torch.zeros(batch.num_rollouts, dtype=torch.float64, device=policy.device)
    microbatches = whole_groups(layout, batch, rollouts, policy.device)
    score, wrong = policy.reference_logprobs if reference else policy.logprobs, -1
    for place, counts in policy.ranks.turns([layout.cost(one) for one in microbatches]):
        answers = Answers.of(batch, microbatches[place])
        sums_R = answers.sums(score(microbatches[place]).float()).double()
        if counts:
            found_R[torch.from_numpy(answers.rollouts).to(policy.device)] = sums_R
        if wrong < 0 and not bool(torch.isfinite(sums_R).all()):
            wrong = place
    blame(policy.ranks, wrong, lambda place: bool(torch.isfinite(score(microbatches[place])).all()))
    found: NDArray[np.float64] = policy.ranks.joined(found_R).cpu().numpy()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """Pairs of answers that are in one forward pass."""

    answers: Answers
    pairs: Sequence[Pair]
    reference_R: Tensor
    """Log-probs of the answers under the reference, nats."""
