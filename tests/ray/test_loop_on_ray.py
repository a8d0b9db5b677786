"""The loop on real actors with timed stand-ins: what only a cluster shows."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import ray

from actors.calls import call, open_payload
from actors.rollout import RemoteRollout
from benchmarks.overlap import standins
from cluster.config.run_file import RunFile
from cluster.placement.placement import check_cluster
from cluster.placement.supply import read_supply
from solon.errors import InputError, WorkerLostError
from solon.ledger.ledger import Grant
from solon.protocols import Assignment
from tests.ray.world import World
from tests.standins.workers import TimedRolloutActor
from tests.unit.fakes import make_prompt

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Pid:
    """An actor that can be killed for real."""

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise InputError("got 3, expected 4; count again")


async def test_lanes_overlap_and_every_group_is_trained_once(ray_cluster):
    overlapped = await standins(steps=12, lane_s=0.2, synchronous=False)
    serial = await standins(steps=6, lane_s=0.2, synchronous=True)
    assert overlapped.steps == 12
    assert overlapped.groups_generated == 12 * 8
    assert max(overlapped.staleness) <= 4
    assert set(serial.staleness) == {0}
    # Three balanced lanes: well above sequential execution, on a busy machine too.
    assert serial.wall_s / 6 > 1.5 * overlapped.wall_s / 12


async def test_a_generated_group_outlives_its_engine(ray_cluster):
    lane = RemoteRollout(
        lambda _: TimedRolloutActor.remote(0.01, 0.0, name="rollout-0"), name="rollout-0", groups_at_once=4
    )
    work = [Assignment(grant=Grant(n, 0, 0), prompt=make_prompt()) for n in range(3)]
    payload_refs = [payload_ref async for _, payload_ref in lane.generate(work)]
    ray.kill(lane.actor)
    await asyncio.sleep(0.5)
    assert sorted(open_payload(payload_ref).ordinal for payload_ref in payload_refs) == [0, 1, 2]


async def test_an_engine_that_is_killed_ends_the_call_with_its_name(ray_cluster):
    actor = Pid.remote()
    os.kill(await actor.pid.remote(), signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="judge-0 died"):
        await asyncio.wait_for(call(actor.pid.remote(), who="judge-0"), timeout=30)


async def test_an_error_of_a_worker_keeps_its_type_and_text(ray_cluster):
    with pytest.raises(InputError, match=r"^got 3, expected 4; count again$"):
        await call(Pid.remote().fail.remote(), who="judge-0")


def test_more_gpus_than_the_cluster_has_are_refused_before_an_actor_is_created(ray_cluster):
    raw = {
        "policy": "a/b",
        "judge": "a/b",
        "prompts": "p",
        "constitution": "c",
        "rollout": {"num_gpus": 1, "num_actors": 3},
    }
    run = RunFile.parse(raw, source="test")
    with pytest.raises(InputError, match=r"needs 3 GPU\(s\) .*has 0; "):
        check_cluster(run, read_supply())


async def test_a_pool_resized_from_one_engine_to_three_and_back_during_a_run_loses_nothing(ray_cluster):
    async with World(steps=30, engines=1, generate_s=0.3, learn_s=0.1) as world:
        world.begin()
        await world.until(lambda: len(world.watcher.batches) >= 2)
        await asyncio.gather(world.grow("rollout-1"), world.grow("rollout-2"))
        joined_at = world.ledger._ledger.version
        holders: set[str] = set()
        while not {"rollout-0", "rollout-1", "rollout-2"} <= holders:  # all three take work
            await world.until(lambda: world.ledger.out())
            holders |= {out["holder"] for out in world.ledger.out()}
            await asyncio.sleep(0.01)
        await world.until(lambda: world.watcher.versions[-1] >= joined_at + 2)
        handed_back = [
            await world.rollout.remove("rollout-0", within_s=0),  # at once: others generate what it holds again
            await world.rollout.remove("rollout-1", within_s=30),
        ]
        left_at = len(world.watcher.batches)
        await world.ended()  # every group is trained once, none is lost, none is older than the bound allows
    assert left_at < world.steps, "the pool was resized after the run"
    assert handed_back[1] == 0
    assert [fields["returned"] for fields in world.told("lane_left")] == handed_back
    assert not world.told("group_lost")
    assert not world.told("worker_lost")
    engines_by_version = dict(zip(world.watcher.versions, world.watcher.receipts, strict=True))
    assert {r.engine for r in engines_by_version[joined_at + 2]} == {"rollout-0", "rollout-1", "rollout-2"}
    assert [r.engine for r in engines_by_version[world.steps]] == ["rollout-2"]
    for name in ("rollout-0", "rollout-1"):  # their processes have ended
        with pytest.raises(WorkerLostError):
            await world.worker(name).heartbeat()
