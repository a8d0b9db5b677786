"""Feeds a fixed data set to a trainer: epochs and batches, in an order that depends only on the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import Field

from learners.core.config import OptimizerConfig, Schedule
from learners.core.objective import MicrobatchT, Objective
from learners.core.trainer import Trainer

ExampleT = TypeVar("ExampleT")


class CourseConfig(OptimizerConfig):
    """How a network learns from a fixed data set. The rate rises, then falls linearly to a tenth at the last step."""

    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epochs: int = Field(1, ge=1)
    """Passes over the data set."""
    batch: int = Field(32, ge=1)
    """Examples of one optimiser step."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises from nearly nothing."""
    max_tokens_per_microbatch: int = Field(16384, ge=16)
    """Padded tokens in one forward pass: bounds memory, does not change the result."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the examples."""

    def steps(self, examples: int) -> int:
        """Optimiser steps for this number of examples."""
        return math.ceil(examples / self.batch) * self.epochs

    def rates(self, steps: int) -> Schedule:
        """The factor on the peak rates for this number of steps."""
        return Schedule(shape="linear", steps=steps, warmup=min(int(self.warmup_share * steps), steps - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseReport:
    """The result of a course."""

    steps: int
    first_loss: float
    """Mean loss of the first step, nats."""
    last_loss: float
    """Mean loss of the last tenth of the steps, nats."""


def run_course(
    objective: Objective[Sequence[ExampleT], MicrobatchT],
    examples: Sequence[ExampleT],
    config: CourseConfig,
    *,
    tick: Callable[[float], None] = lambda _: None,
) -> CourseReport:
    """Train the objective's networks in place, on the loss that it reports as `loss/mean`. tick: called after every
    step with the share of the steps that is done.

    The same networks, examples and configuration on one machine give the same result. Raises RunFailedError when a loss
    or gradient is not finite.
    """
    steps = config.steps(len(examples))
    trainer = Trainer(objective, config, schedule=config.rates(steps), seed=config.seed)
    per_epoch = steps // config.epochs
    rng = np.random.default_rng(config.seed)
    losses = []
    for step in range(steps):
        if step % per_epoch == 0:
            order_N = rng.permutation(len(examples))
        start = step % per_epoch * config.batch
        batch = [examples[i] for i in order_N[start : start + config.batch]]
        losses.append(trainer.train(step, batch).metrics["learn/loss/mean"])
        tick((step + 1) / steps)
    tail = losses[-math.ceil(steps / 10) :]
    return CourseReport(steps=steps, first_loss=losses[0], last_loss=sum(tail) / len(tail))
