"""Pools that follow a changing load, and machines that go: whole runs in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from solon.elasticity.config import ElasticityConfig
from solon.elasticity.decide import Bounds
from solon.elasticity.draining import Draining
from solon.elasticity.elastic_pool import ElasticPool
from solon.errors import RunFailedError
from solon.pipeline.pool import Pool
from tests.standins.elastic import Loss, Outcome, Scenario, Timing, simulate
from tests.unit.fakes import FakeRollout

LIGHT, HEAVY = Timing(0, 4, 0.3, 20), Timing(0, 16, 2.4, 20)


def changes(outcome: Outcome, pool: str) -> list[int]:
    """The sizes that a pool had, in order."""
    sizes = [size for _, name, size in outcome.sizes if name == pool]
    return [size for n, size in enumerate(sizes) if n == 0 or sizes[n - 1] != size]


def test_pools_grow_when_groups_take_longer_and_shrink_when_they_take_less():
    timings = (LIGHT, replace(HEAVY, begins_s=1000), replace(LIGHT, begins_s=3000))
    outcome = simulate(Scenario(steps=200, timings=timings, most=(3, 3)))
    assert changes(outcome, "rollout") == [1, 3, 2, 1]
    assert changes(outcome, "judge") == [1, 2, 1]
    assert not outcome.told("group_lost")
    assert {fields["returned"] for fields in outcome.told("lane_left")} == {0}
    first = outcome.told("resized")[0]
    assert (first["pool"], first["before"], first["after"]) == ("rollout", 1, 3)
    assert "learn takes 0.4: 3 are needed" in first["reason"]


def test_pools_of_fixed_size_keep_it():
    outcome = simulate(Scenario(steps=30, timings=(HEAVY,)))
    assert changes(outcome, "rollout") == [1]
    assert not outcome.told("resized")


def test_a_growth_without_a_place_is_withdrawn_after_its_deadline_and_not_repeated_at_once():
    config = ElasticityConfig(place_timeout_s=100, retry_after_s=500)
    outcome = simulate(Scenario(steps=40, timings=(HEAVY,), most=(3, 1), rooms=(2, 1), config=config))
    assert changes(outcome, "rollout") == [1, 2]
    refused = outcome.told("lane_not_added")
    assert {fields["cause"] for fields in refused} == {
        f"RunFailedError: no place for rollout-{number} within 100 s" for number in range(2, 2 + len(refused))
    }
    # One try every 100 + 500 seconds.
    assert 1 <= len(refused) <= outcome.seconds / 600 + 1


def test_a_worker_on_a_machine_that_is_drained_leaves_before_it_goes_and_its_pool_keeps_its_size():
    losses = (Loss(300, "rollout", notice_s=120), Loss(600, "judge", notice_s=120))
    outcome = simulate(Scenario(steps=60, timings=(HEAVY,), sizes=(2, 2), most=(2, 2), losses=losses))
    assert {fields["worker"].partition("-")[0] for fields in outcome.told("worker_draining")} == {"rollout", "judge"}
    assert not outcome.told("worker_lost")
    assert not outcome.told("group_lost")
    assert (outcome.size_at(299, "rollout"), outcome.size_at(599, "judge")) == (2, 2)
    assert len(outcome.told("lane_joined")) == len(outcome.told("lane_left")) == 2


def test_the_last_worker_stays_until_its_replacement_has_joined():
    losses = (Loss(300, "rollout", notice_s=120), Loss(600, "judge", notice_s=120))
    outcome = simulate(Scenario(steps=40, timings=(HEAVY,), losses=losses))
    assert not outcome.told("worker_lost")
    assert len(outcome.told("lane_left")) == 2


def test_without_another_machine_the_worker_leaves_in_time_and_the_pool_has_its_size_again_when_one_comes():
    losses = (Loss(300, "rollout", notice_s=60, gone_s=400),)
    outcome = simulate(Scenario(steps=60, timings=(HEAVY,), sizes=(2, 1), most=(2, 1), losses=losses, rooms=(2, 1)))
    assert not outcome.told("worker_lost")
    assert outcome.size_at(299, "rollout") == 1
    assert outcome.size_at(760, "rollout") == 2


@pytest.mark.parametrize("seed", range(4))
def test_a_schedule_of_spot_losses_loses_no_group_trains_none_twice_and_keeps_the_bound(seed: int):
    rng = random.Random(seed)
    losses = tuple(
        Loss(at_s, rng.choice(["rollout", "rollout", "judge"]), rng.choice([0, 30, 120]), rng.choice([60, 400]))
        for at_s in range(200, 4000, 150)
    )
    timings = (HEAVY, replace(LIGHT, begins_s=1500), replace(HEAVY, begins_s=2500))
    scenario = Scenario(steps=120, timings=timings, most=(3, 3), rooms=(4, 4), losses=losses, target=seed % 3, bound=4)
    outcome = simulate(scenario)  # which checks it
    assert outcome.told("worker_draining")
    assert outcome.told("worker_lost")


async def test_a_new_worker_gets_a_name_that_no_worker_ever_had():
    told: list[dict[str, Any]] = []

    async def start(name: str, place_within_s: float) -> FakeRollout:
        if name == "rollout-2":
            raise RunFailedError("no place")
        return FakeRollout(name)

    pool = Pool([FakeRollout("rollout-0"), FakeRollout("rollout-1")])
    elastic = ElasticPool(
        "rollout", pool, Bounds(least=1, most=4), start=start, emit=lambda name, **fields: told.append(fields)
    )
    assert not await elastic.grow(2, place_within_s=1)
    assert [lane.name for lane in pool] == ["rollout-0", "rollout-1", "rollout-3"]
    assert told == [{"worker": "rollout-2", "cause": "RunFailedError: no place"}]
    assert await elastic.shrink(within_s=1)
    assert await elastic.add(place_within_s=1)
    assert [lane.name for lane in pool] == ["rollout-0", "rollout-1", "rollout-4"]


async def test_a_worker_that_is_announced_twice_while_it_moves_is_replaced_once():
    started: list[str] = []
    tasks: list[asyncio.Future[None]] = []

    async def start(name: str, place_within_s: float) -> FakeRollout:
        started.append(name)
        await asyncio.sleep(0.01)
        return FakeRollout(name)

    pool = Pool([FakeRollout("rollout-0"), FakeRollout("rollout-1")])
    elastic = ElasticPool("rollout", pool, Bounds(least=2, most=2), start=start, emit=lambda name, **fields: None)
    draining = Draining(
        ElasticityConfig(), [elastic], emit=lambda name, **fields: None,
        begin=lambda work: tasks.append(asyncio.ensure_future(work)),
    )  # fmt: skip
    draining.notice({"rollout-1": 60.0})
    await asyncio.sleep(0)
    draining.notice({})  # Ray did not answer
    draining.notice({"rollout-1": 59.0})
    await asyncio.gather(*tasks)
    assert started == ["rollout-2"]
    assert [lane.name for lane in pool] == ["rollout-0", "rollout-2"]


async def test_the_last_worker_cannot_leave():
    async def start(name: str, place_within_s: float) -> FakeRollout:
        await asyncio.sleep(0)
        return FakeRollout(name)

    elastic = ElasticPool(
        "rollout", Pool([FakeRollout()]), Bounds(least=1, most=2), start=start, emit=lambda name, **fields: None
    )
    assert not await elastic.leave("rollout-0", within_s=1)
    assert not elastic.is_changing


def test_thresholds_that_would_make_a_pool_grow_and_shrink_in_turn_are_refused():
    with pytest.raises(ValueError, match=r"shrink_share = 0.1, expected more than spare_share = 0.2"):
        ElasticityConfig(spare_share=0.2, shrink_share=0.1)
