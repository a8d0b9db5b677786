"""Feeds a fixed data set to a trainer: epochs and batches, in an order that depends only on the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from learners.core.config import CourseConfig
from learners.core.objective import MicrobatchT, Objective
from learners.core.trainer import Trainer

__all__ = ["CourseConfig", "CourseReport", "run_course"]

ExampleT = TypeVar("ExampleT")


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
