"""The process that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.config.sections import LearnSection
from cluster.pools.base import PoolContext, Role
from solon.recovery.supervised_lanes import SupervisedLearner

SILENT_SHARE = 0.7
"""Of the time within which a learner must give a heartbeat: a silent rank is named before the learner is lost."""


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
            "adapter_only": run.publish.way == "adapter",
        }
        placed, threads = run.learn.placed, run.learn.threads
        if pool.num_ranks > 1:
            return [
                _group(actor, pool, name, context, placed, {**named, "rank_timeout_s": run.learn.rank_timeout_s})
                for name in pool.worker_names
            ]
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


def _group(
    actor: Any, pool: PoolSpec, name: str, context: PoolContext, config: LearnSection, named: Mapping[str, Any]
) -> Any:
    """Ranks in a placement group of their own, which keeps its nodes while they are replaced."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from actors.learner_group import RemoteLearnerGroup

    wanted, ranks, nodes = pool.placement, pool.num_ranks, pool.num_nodes
    share = ranks // nodes
    # A bundle is all that the ranks of one node ask for.
    bundle = {key: share * value for key, value in (("CPU", wanted.num_cpus), ("GPU", wanted.num_gpus)) if value}
    group = placement_group(
        [bundle or {"CPU": 0.001}] * nodes,
        strategy="STRICT_SPREAD",
        bundle_label_selector=[dict(wanted.labels)] * nodes if wanted.labels else None,
    )

    def spawn(made: int) -> list[Any]:
        found = []
        for rank in range(ranks):
            options = context.options(pool, f"{name}-rank-{rank}", made, threads=config.threads, trains=True)
            options.pop("label_selector")  # the bundles have it
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, rank // share)
            own = {"name": name, "rank": rank, "ranks": ranks, "nodes": nodes}
            found.append(actor.options(**options).remote(config, **own, **named))
        return found

    return RemoteLearnerGroup(
        spawn, name=name, ranks=ranks, node=group, silent_s=SILENT_SHARE * context.run.recovery.beat_timeout_s
    )
