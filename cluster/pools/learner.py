"""The process that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext, Role
from solon.recovery.supervised_lanes import SupervisedLearner


class LearnerRole(Role):
    """The pool `learner`, which every stage that trains has."""

    role: ClassVar[str] = "learner"

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        from actors.learner import LearnerActor, RemoteLearner

        run, actor = context.run, self._actor or LearnerActor
        named = {
            "model": pool.model,
            "sampling": run.rollout.sampling(),
            "seed": run.seed,
            "engines_in_float32": run.rollout.computes_in_float32,
        }
        placed, threads = run.learn.placed, run.learn.threads
        return [
            RemoteLearner(context.spawner(actor, pool, name, placed, threads=threads, trains=True, **named), name=name)
            for name in pool.worker_names
        ]

    def start_arguments(self, context: PoolContext) -> tuple[Any, ...]:
        return (context.checkpoint,)

    def supervised(self, workers: Sequence[Any], context: PoolContext) -> list[Any]:
        recovery, emit, clock = context.run.recovery, context.emit, context.clock
        return [
            SupervisedLearner(worker, recovery, checkpoint=context.checkpoint, emit=emit, clock=clock)
            for worker in workers
        ]
