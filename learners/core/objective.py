"""The interface between a `Trainer` and an objective.

An objective owns the networks that train. For every batch it says which minibatches to take optimiser steps on
(`prepare`), and what the loss of one microbatch is (`loss`); the trainer does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from learners.core.ranks import ALONE, Ranks
from learners.core.sharding import shard
from solon.records import TrainedGroup

BatchT = TypeVar("BatchT")
"""The data of one step."""
MicrobatchT = TypeVar("MicrobatchT")
"""The input of one forward pass."""

Metrics = dict[str, Tensor]
"""Scalars by `what/stat`; those of a minibatch are the sums of those of its microbatches."""
Loss = tuple[Tensor, Metrics]
"""A scalar to differentiate, and the metrics beside it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A network with its own optimiser."""

    module: nn.Module
    learning_rate: float
    """Peak learning rate."""


@dataclass(frozen=True, slots=True)
class Minibatch(Generic[MicrobatchT]):
    """The data of one optimiser step."""

    microbatches: Sequence[MicrobatchT]
    denominator: float
    """The divisor of sums over the minibatch (its tokens, its weights), so that losses and gradients of its
    microbatches add up to those of one big batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Generic[MicrobatchT]):
    """The work of one step."""

    minibatches: Iterable[Minibatch[MicrobatchT]]
    """In order; may be computed lazily."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """By `what/stat`."""
    groups: tuple[TrainedGroup, ...] = ()
    """Reward and advantage of every rollout, for objectives that learn from rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext(Generic[MicrobatchT]):
    """What an objective may know and do while it prepares a step."""

    step: int
    seed: int
    """Of the run: every random draw comes from (seed, step)."""
    update: Callable[[Minibatch[MicrobatchT], Callable[[MicrobatchT, float], Iterator[Loss]], str], None]
    """Take one optimiser step of one part on a loss of its own: `update(minibatch, loss, "critic")`. For networks that
    must learn before the batch can be prepared."""


class Objective(ABC, Generic[BatchT, MicrobatchT]):
    """The quantity to minimise. Its only state across steps is its networks and the result of `counters`."""

    remedy: ClassVar[str] = "lower learning_rate"
    """The remedy when a loss or gradient is not finite."""

    ranks: Ranks = ALONE
    """The processes among which the networks are divided."""

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """The networks that train, by name. Checkpoints contain the names; the first one's metrics have no prefix."""

    def divide(self, ranks: Ranks) -> None:
        """Divide all networks among ranks, before an optimiser is built. Raises InputError for a network that cannot be
        divided."""
        self.ranks = ranks
        for part in self.parts().values():
            shard(part.module, ranks)

    def cost(self, microbatch: MicrobatchT) -> float:
        """The work of a microbatch in comparison with others, such as its tokens: ranks get equal shares."""
        return 1.0

    @abstractmethod
    def prepare(self, batch: BatchT, context: StepContext[MicrobatchT]) -> Prepared[MicrobatchT]:
        """Minibatches, metrics and trained groups of one step. Raises RunFailedError for a batch that cannot train."""

    def completed(
        self, batch: BatchT, prepared: Prepared[MicrobatchT], context: StepContext[MicrobatchT]
    ) -> Prepared[MicrobatchT]:
        """`prepared` with the metrics and groups that `prepare` left out."""
        return prepared

    @abstractmethod
    def loss(self, microbatch: MicrobatchT, denominator: float) -> Iterator[Loss]:
        """One or several terms of the loss of a microbatch. Each is differentiated before the next is computed, so that
        terms of different networks are never in memory together."""

    def require_close(self, metrics: Mapping[str, float], step: int) -> None:
        """Raises RunFailedError when the metrics of a prepared step say that the policy has left its reference."""

    def raise_kl(self, factor: float) -> float:
        """Multiply the weight of the KL to the reference, from the next step on; returns the new one."""
        raise ValueError(f"{type(self).__name__} has no KL to a reference, got a factor of {factor}")

    def counters(self) -> dict[str, float]:
        """Numbers that a checkpoint keeps beside the networks."""
        return {}

    def restore(self, counters: Mapping[str, float]) -> None:
        """Restore the result of `counters`. Checkpoints of earlier versions may lack keys."""
