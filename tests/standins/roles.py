"""Roles of a run whose workers are stand-ins: `train(roles={"rollout": StandinRollout(spawner), ...})`.

Names, guards and replacement are those of real workers; only the code in the process differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actors.calls import Spawn
from actors.judge import RemoteJudge
from actors.learner import RemoteLearner
from actors.rollout import RemoteRollout
from cluster.config.pools import PoolSpec
from cluster.pools.audit import AuditRole
from cluster.pools.base import PoolContext
from cluster.pools.judge import JudgeRole
from cluster.pools.learner import LearnerRole
from cluster.pools.rollout import RolloutRole

Spawner = Callable[[PoolSpec, str, PoolContext], Spawn]
"""Makes the process of one worker, given its pool and name."""


class StandinRollout(RolloutRole):
    """Engines."""

    def __init__(self, spawner: Spawner, *, groups_at_once: int = 8) -> None:
        super().__init__()
        self._spawner, self._places = spawner, groups_at_once

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        return [
            RemoteRollout(self._spawner(pool, name, context), name=name, groups_at_once=self._places)
            for name in pool.worker_names
        ]


class StandinJudge(JudgeRole):
    """Judges that label."""

    def __init__(self, spawner: Spawner, *, groups_at_once: int = 8) -> None:
        super().__init__()
        self._spawner, self._places = spawner, groups_at_once

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        return [
            RemoteJudge(self._spawner(pool, name, context), name=name, groups_at_once=self._places)
            for name in pool.worker_names
        ]


class StandinAudit(AuditRole):
    """Judges that audit."""

    def __init__(self, spawner: Spawner) -> None:
        super().__init__()
        self._spawner = spawner

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        return [
            RemoteJudge(self._spawner(pool, name, context), name=name, groups_at_once=1) for name in pool.worker_names
        ]


class StandinLearner(LearnerRole):
    """The learner."""

    def __init__(self, spawner: Spawner) -> None:
        super().__init__()
        self._spawner = spawner

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        return [RemoteLearner(self._spawner(pool, name, context), name=name) for name in pool.worker_names]
