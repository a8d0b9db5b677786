"""Feedback models that label rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext, Role
from cluster.pools.ranks import engine_of, on_one_node
from solon.engines.base import EngineConfig
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.judge_file import load_judge_file
from solon.recovery.supervised_lanes import SupervisedJudge


class JudgeRole(Role):
    """`[pools.judge] role = "judge"`"""

    role: ClassVar[str] = "judge"

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        from actors.judge import JudgeActor, RemoteJudge

        source, settings = source_of(pool.model, pool, context), self.feedback(context)
        named = {
            "others": [source_of(other, pool, context) for other in settings.panel],
            "secret": context.secret,
            "port": limits_of(source, pool.model, context),
            "threads": pool.engine.threads,
        }
        actor, places = self._actor or JudgeActor, self.groups_at_once(pool, context)
        if pool.num_ranks > 1 and isinstance(source, EngineConfig):
            return [_group(self._actor, pool, name, source, settings, context, places) for name in pool.worker_names]
        return [
            RemoteJudge(
                context.spawner(actor, pool, name, source, settings, context.constitution, **named),
                name=name,
                groups_at_once=places,
            )
            for name in pool.worker_names
        ]

    def feedback(self, context: PoolContext) -> FeedbackConfig:
        """How the judge is asked."""
        return context.run.feedback

    def groups_at_once(self, pool: PoolSpec, context: PoolContext) -> int:
        """Groups that one worker receives together."""
        return max(2, 2 * pool.engine.max_running // context.run.rollout.group_size)

    def supervised(self, workers: Sequence[Any], context: PoolContext) -> list[Any]:
        return [SupervisedJudge(worker, context.guard(worker)) for worker in workers]


def _group(
    actor: Any,
    pool: PoolSpec,
    name: str,
    source: EngineConfig,
    settings: FeedbackConfig,
    context: PoolContext,
    places: int,
) -> Any:
    """A judge on an engine of several ranks: it has no further judges."""
    from actors.engine_group import LeadingJudgeActor, RemoteJudgeGroup

    config = engine_of(source, context)
    arguments = (config, settings, context.constitution)
    group = on_one_node(actor or LeadingJudgeActor, pool, name, config, context, arguments, {"secret": context.secret})
    return RemoteJudgeGroup(**group, groups_at_once=places)


def source_of(model: str, pool: PoolSpec, context: PoolContext) -> Source:
    """The backend of a judge of this name: an endpoint, or an engine built as the pool says."""
    if EndpointFile.names(model):
        return load_judge_file(model)
    return pool.model_copy(update={"model": model}).engine_config(seed=context.run.seed)


def limits_of(source: Source, model: str, context: PoolContext) -> Any:
    """The limits of an endpoint, shared by all judges that call it; None: it is not an endpoint."""
    if not isinstance(source, EndpointFile):
        return None
    key = f"limits {model}"
    if key not in context.shared:
        context.shared[key] = _new_limits(source, context)
    return context.shared[key]


def _new_limits(source: EndpointFile, context: PoolContext) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.limits import LimitsActor, RemoteLimits

    # On the driver's node, where its spend file is.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    count = sum(key.startswith("limits ") for key in context.shared)
    name = f"limits-{count}" if count else "limits"
    actor = LimitsActor.options(name=name, namespace=context.namespace, scheduling_strategy=here)
    return RemoteLimits(actor.remote(source.limits))
