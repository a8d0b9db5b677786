"""Engines that generate answers with the policy's current weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext, Role
from cluster.pools.ranks import engine_of, on_one_node
from solon.engines.base import EngineConfig
from solon.pipeline.rollout import RolloutSettings
from solon.recovery.supervised_lanes import SupervisedRollout


class RolloutRole(Role):
    """`[pools.policy] role = "rollout"`"""

    role: ClassVar[str] = "rollout"
    is_once: ClassVar[bool] = True  # weights are published to one pool

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        from actors.rollout import RemoteRollout, RolloutActor

        run = context.run
        settings = RolloutSettings(
            sampling=run.rollout.sampling(),
            group_size=run.rollout.group_size,
            seed=run.seed,
            salvage_every_s=run.recovery.salvage_every_s,
            cuts_overlong=run.data.overlong == "cut",
        )
        room = run.adapter_room
        received = {"reloads": room is None, "adapters": room}
        engine = pool.engine_config(seed=run.seed).model_copy(update=received)
        # Twice the number that it decodes together: when an answer ends, the next one is already queued.
        places = max(2, 2 * pool.engine.max_running // run.rollout.group_size)
        if pool.num_ranks > 1:
            return [self._group(pool, name, engine, settings, context, places) for name in pool.worker_names]
        actor, threads = self._actor or RolloutActor, pool.engine.threads
        return [
            RemoteRollout(
                context.spawner(actor, pool, name, engine, settings, threads=threads), name=name, groups_at_once=places
            )
            for name in pool.worker_names
        ]

    def _group(
        self,
        pool: PoolSpec,
        name: str,
        engine: EngineConfig,
        settings: RolloutSettings,
        context: PoolContext,
        places: int,
    ) -> Any:
        from actors.engine_group import LeadingRolloutActor, RemoteRolloutGroup

        config = engine_of(engine, context)
        actor = self._actor or LeadingRolloutActor
        group = on_one_node(actor, pool, name, config, context, (config, settings), {})
        return RemoteRolloutGroup(**group, groups_at_once=places)

    def supervised(self, workers: Sequence[Any], context: PoolContext) -> list[Any]:
        return [SupervisedRollout(worker, context.guard(worker)) for worker in workers]
