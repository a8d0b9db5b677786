"""Places the ranks of an engine in a group of their own, which keeps its node while they are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext
from solon.engines.base import EngineConfig

SILENT_SHARE = 0.7
"""Of the time within which a worker must give a heartbeat: a silent rank is named before the worker is lost."""


def engine_of(config: EngineConfig, context: PoolContext) -> EngineConfig:
    """The configuration with the deadline of its ranks: after it they count as hung, as any engine does."""
    return config.model_copy(update={"rank_timeout_s": context.run.recovery.stall_s})


def on_one_node(
    actor: Any, pool: PoolSpec, name: str, config: EngineConfig, context: PoolContext, arguments: Sequence[Any],
    named: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a `Ranked` remote. actor: the class of the first rank, with its arguments after `name`."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from actors.engine_group import FollowerActor

    wanted, ranks = pool.placement, pool.num_ranks
    bundle = {key: value for key, value in (("CPU", wanted.num_cpus), ("GPU", wanted.num_gpus)) if value}
    node = placement_group(
        [bundle or {"CPU": 0.001}] * ranks,
        strategy="STRICT_PACK",
        bundle_label_selector=[dict(wanted.labels)] * ranks if wanted.labels else None,
    )

    def options(rank: int, made: int) -> dict[str, Any]:
        own = f"{name}-rank-{rank}" if rank else name
        found = context.options(pool, own, made, threads=pool.engine.threads)
        found.pop("label_selector")  # the bundles have it
        # Sets of strings then have one order on all ranks: what vLLM decides by such an order, it decides alike.
        found["runtime_env"]["env_vars"]["PYTHONHASHSEED"] = "0"
        return found | {"scheduling_strategy": PlacementGroupSchedulingStrategy(node, rank)}

    def spawn(made: int) -> list[Any]:
        first = actor.options(**options(0, made)).remote(*arguments, name=name, **named)
        others = [
            FollowerActor.options(**options(rank, made)).remote(config, name=name, rank=rank)
            for rank in range(1, ranks)
        ]
        return [first, *others]

    silent_s = SILENT_SHARE * context.run.recovery.beat_timeout_s
    return {"spawn": spawn, "name": name, "node": node, "silent_s": silent_s}
