"""Messages while actors of a run have no node yet."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.config.run_file import RunFile
from cluster.placement.placement import demands_of
from cluster.placement.supply import Growth, free_of, pending_in
from cluster.placement.waiting import Waiting

RAW = {"policy": "a/b", "judge": "a/b", "prompts": "p", "constitution": "c"}
RUN = RunFile.parse(
    RAW | {"judging": {"num_actors": 2, "num_gpus": 1, "labels": {"solon.io/pool": "judge"}}}, source="test"
)


class World:
    """A cluster, and the messages of a run about it."""

    def __init__(self, *growths: Growth) -> None:
        self.growths = list(growths)
        self.said: list[str] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.waiting = Waiting(
            demands_of(RUN),
            say=self.said.append,
            emit=lambda name, **fields: self.told.append((name, fields)),
            look=lambda: self.growths.pop(0) if len(self.growths) > 1 else self.growths[0],
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - a list sends no notification when it grows
                await asyncio.sleep(0.005)

    async def report(self) -> None:
        await self.waiting.report(first_s=0.01, every_s=0.01)


def growth(*, pending: bool = True, starting: dict[str, int] | None = None, failed: tuple[str, ...] = ()) -> Growth:
    return Growth(
        nodes=Counter(head=1), starting=Counter(starting or {}), failed=failed, pending=((1.0, 1.0),) if pending else ()
    )


def test_a_line_says_how_much_of_the_cluster_is_free():
    free = free_of({"GPU": 1.0}, {"CPU": 2.0, "GPU": 4.0, "memory": 1e9})
    assert free == ("0 of 2 CPUs free", "1 of 4 GPUs free")
    line = World(growth()).waiting.line(replace(growth(), free=free))
    assert line.endswith("nodes: 1 head, 0 of 2 CPUs free, 1 of 4 GPUs free")


async def test_each_line_names_the_waiting_actors_and_the_growth_of_the_cluster():
    world = World(growth(), growth(starting={"judge": 2}), growth(failed=("judge: no capacity",)))
    world.waiting.placed("learner")
    task = asyncio.ensure_future(world.report())
    await world.until(lambda: len(world.said) >= 3)
    world.waiting.placed("rollout-0")
    world.waiting.placed("judge-1")
    await world.until(lambda: "of 4 actors: judge-0 asks" in world.said[-1])
    for worker in ("judge-0", "audit-judge"):  # an unannounced worker is no error
        world.waiting.placed(worker)
    await asyncio.wait_for(task, 5)
    asks = "rollout-0 asks 1 CPU; judge-0, judge-1 ask 1 CPU, 1 GPU, solon.io/pool=judge"
    assert world.said[:3] == [
        f"waiting for 3 of 4 actors: {asks}; nodes: 1 head",
        f"waiting for 3 of 4 actors: {asks}; nodes: 1 head; starting: 2 judge",
        f"waiting for 3 of 4 actors: {asks}; nodes: 1 head; not started: judge: no capacity",
    ]
    told = {"workers": ["judge-0", "judge-1", "rollout-0"], "asks": asks}
    assert world.told == [("waiting_for_nodes", told)]


async def test_actors_starting_on_their_nodes_are_not_reported_as_waiting():
    world = World(growth(pending=False))
    task = asyncio.ensure_future(world.report())
    await asyncio.sleep(0.2)
    task.cancel()
    assert not world.said
    assert not world.told


def test_the_ranks_of_a_learner_that_wait_for_nodes_are_pending_and_told_once():
    """Ray lists placement groups apart from actors."""
    from ray.core.generated import autoscaler_pb2 as protocol

    state = protocol.ClusterResourceState()
    assert pending_in(state) == ()
    state.pending_resource_requests.add().request.resources_bundle["CPU"] = 1.0
    gang = state.pending_gang_resource_requests.add()
    for _ in range(2):
        gang.bundle_selectors.add().resource_requests.add().resources_bundle.update({"CPU": 2.0, "GPU": 4.0})
    older = state.pending_gang_resource_requests.add()
    older.requests.add().resources_bundle["CPU"] = 3.0
    assert pending_in(state) == ((1.0, 0.0), (4.0, 8.0), (3.0, 0.0))

    run = RunFile.parse(RAW | {"learn": {"num_ranks": 4, "num_nodes": 2}}, source="test")
    waiting = Waiting(demands_of(run), say=lambda _: None, emit=lambda *_, **__: None)
    assert "waiting for 3 of 3 actors: " in waiting.line(growth())
    assert "learner asks 2 CPU on each of 2 nodes" in waiting.line(growth())
