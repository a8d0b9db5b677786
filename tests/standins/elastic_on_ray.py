"""A run on real actors whose engines become slow and fast again, while its pool of engines follows the load."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from solon.elasticity.config import ElasticityConfig
from solon.elasticity.controller import Elasticity
from solon.elasticity.decide import Bounds
from solon.elasticity.elastic_pool import ElasticPool
from solon.ledger.staleness import StalenessConfig
from tests.ray.world import World

QUICK = ElasticityConfig(every_s=0.5, cooldown_s=1, place_timeout_s=20, retry_after_s=5, leave_within_s=5)
BATCH = 4
LEARN_S = 0.5
FAST_S, SLOW_S = 0.1, 1.0
"""Of a group; an engine decodes four together, the learner takes 8 groups a second."""


@dataclass
class Seen:
    """What happened."""

    sizes: list[tuple[float, int]] = field(default_factory=list)
    """(second, engines), at every change."""
    steps: list[tuple[float, int]] = field(default_factory=list)
    """(second, committed steps), at every change of the load."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


async def changing_load(*, steps: int, most: int = 3, least: int = 1, slow_from: int = 0, slow_to: int = 0) -> Seen:
    """Engines are slow between these steps. Within a Ray session. Checks every invariant of a finished run."""
    seen = Seen()
    began = time.monotonic()
    async with World(
        steps=steps, batch=BATCH, engines=least, generate_s=FAST_S, label_s=0.005, learn_s=LEARN_S,
        staleness=StalenessConfig(target_staleness=2, max_staleness=4),
    ) as world:  # fmt: skip

        async def start(name: str, place_within_s: float) -> Any:
            engine = world.engine(name)
            world.engines.append(engine)
            await asyncio.wait_for(engine.start(), place_within_s)
            await engine.actor.pace.remote(world.generate_s)
            lane = world.supervised(engine)
            world.guards.append(lane.guard)
            return lane

        async def pace(seconds: float) -> None:
            world.generate_s = seconds
            seen.steps.append((time.monotonic() - began, len(world.watcher.batches)))
            await asyncio.gather(*(lane.process.actor.pace.remote(seconds) for lane in world.rollout))

        async def vary() -> None:
            for step, seconds in ((slow_from, SLOW_S), (slow_to, FAST_S)):
                await world.until(lambda step=step: len(world.watcher.batches) >= step, timeout_s=300)
                await pace(seconds)

        async def watch() -> None:
            while True:
                if not seen.sizes or seen.sizes[-1][1] != len(world.rollout):
                    seen.sizes.append((time.monotonic() - began, len(world.rollout)))
                await asyncio.sleep(0.1)

        pool = ElasticPool(
            "rollout", world.rollout, Bounds(least=least, most=most), start=start, emit=world.watcher.event
        )
        elasticity = Elasticity(
            QUICK, [pool], learned=lambda: (len(world.watcher.batches), len(world.watcher.batches) * LEARN_S),
            batch_groups=BATCH, in_flight=2 * BATCH, emit=world.watcher.event,
        )  # fmt: skip
        world.begin()
        others = [asyncio.ensure_future(watch()), *([asyncio.ensure_future(vary())] if slow_to else [])]
        try:
            async with elasticity:
                await world.ended(timeout_s=500)
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        seen.steps.append((time.monotonic() - began, steps))
        seen.events = list(world.watcher.events)
    return seen
