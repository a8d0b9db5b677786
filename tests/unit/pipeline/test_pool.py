"""Pools that change size while the loop runs: nothing is lost, nothing is trained twice, no token is too old."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from solon.clock import Clock
from solon.errors import AttestationError, WorkerLeftError, WorkerLostError
from solon.ledger.ledger import Work
from solon.ledger.staleness import StalenessConfig
from solon.loop import Lanes, run_loop
from solon.pipeline.pool import Pool, Seat
from solon.pipeline.publication import Publication, PublishConfig
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import LoadReceipt, Salvage, Weights
from solon.recovery.guard import Guard, RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedRollout
from tests.unit.fakes import FakeJudge, FakeLearner, FakeRollout, Witness, make_lanes, make_weights
from tests.unit.virtual_time import run_virtual

RECOVERY = RecoveryConfig(backoff_s=0, max_restarts=100, beat_every_s=5, beat_timeout_s=30)


@dataclass
class Mortal:
    """The base of the processes below: they end for good, or die and are replaced."""

    ended: bool = False
    dies: asyncio.Event = field(default_factory=asyncio.Event)

    async def restart(self, placed: Callable[[], None]) -> None:
        await asyncio.sleep(30)
        placed()
        self.dies = asyncio.Event()

    async def heartbeat(self) -> float:
        self.check()
        return 0.0

    def check(self) -> None:
        if self.dies.is_set() or self.ended:
            raise WorkerLostError("it died")

    def end(self) -> None:
        self.ended = True


@dataclass
class Engine(Mortal, FakeRollout):
    late_loads: int = 0
    """Weights that it was sent after its process had ended."""

    async def restart(self, placed: Callable[[], None]) -> None:
        await super().restart(placed)
        self.engine_version = -1  # holds nothing until it joins

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport | Salvage, Any]]:
        for item in work:
            assert self.engine_version >= item.grant.version, "work was given to an engine with older weights"
        async for item in super().generate(work):
            self.check()
            yield item

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        self.late_loads += self.ended
        await asyncio.sleep(3)
        self.check()
        return await super().load_weights(weights)


@dataclass
class Judge(Mortal, FakeJudge):
    async def label(self, work: Work) -> tuple[LabelReport, Any]:
        answer = await super().label(work)
        self.check()
        return answer


class World:
    """A run on fakes in virtual time whose pools change size."""

    def __init__(
        self, clock: Clock, *, steps: int, rollouts: int = 1, judges: int = 1, learn_s: float = 20, **options: Any
    ) -> None:
        self.clock, self.steps = clock, steps
        self._count = itertools.count()
        self.engines: dict[str, Engine] = {}
        lanes, self.witness = make_lanes(
            steps=steps,
            clock=clock,
            learner=FakeLearner(delay_s=learn_s),
            max_losses=1000,
            max_dropped_share=1.0,
            **options,
        )
        self.ledger: Any = lanes.ledger
        rollout = Pool([self.engine() for _ in range(rollouts)])
        settings = PublishConfig(logprob_tolerance=1e-3, timeout_s=60)
        publication = Publication(rollout, settings=settings, initial=make_weights(0), clock=clock)
        rollout.entry = publication
        self.rollout, self.judges = rollout, Pool([self.judge() for _ in range(judges)])
        self.lanes: Lanes = replace(lanes, rollout=rollout, judges=self.judges, publication=publication, grace_s=300)
        self.changes = 0

    def engine(self, delay_s: float = 4.0, **options: Any) -> SupervisedRollout:
        name = f"rollout-{next(self._count)}"
        engine = self.engines[name] = Engine(name=name, groups_at_once=5, delay_s=delay_s, **options)
        return SupervisedRollout(engine, Guard(engine, RECOVERY, emit=self.witness.event, clock=self.clock))

    def judge(self, delay_s: float = 2.0) -> SupervisedJudge:
        judge = Judge(name=f"judge-{next(self._count)}", groups_at_once=3, delay_s=delay_s)
        return SupervisedJudge(judge, Guard(judge, RECOVERY, emit=self.witness.event, clock=self.clock))

    async def run(self, meanwhile: Callable[[], Any]) -> int:
        await self.lanes.publication.verify(make_weights(0), make_weights(0))
        running = asyncio.ensure_future(run_loop(self.lanes, steps=self.steps, min_valid=2, stop=asyncio.Event()))
        changing = asyncio.ensure_future(meanwhile())
        try:
            while not running.done():
                await asyncio.sleep(60)
                if changing.done():
                    changing.result()
                assert asyncio.get_running_loop().time() < 6 * 3600, (self.ledger._ledger.counts(), self.ledger.out())
            return await running
        finally:
            running.cancel()
            changing.cancel()
            await asyncio.gather(running, changing, return_exceptions=True)
            for lane in (*self.rollout, *self.judges):
                await lane.guard.close()

    def check(self, *, bound: int) -> None:
        """The invariants after every run, however often its pools were resized."""
        counts, trained = self.ledger._ledger.counts(), self.lanes.learner.batches  # type: ignore[attr-defined]
        ordinals = [ordinal for batch in trained for ordinal in batch]
        assert len(ordinals) == len(set(ordinals)) == counts["committed"] == 4 * self.steps
        assert counts["admitted"] == counts["committed"] + counts["dropped"] + counts["held"]
        assert (counts["held"], counts["dropped"]) == (0, 0)
        assert max(self.witness.staleness) <= bound
        assert not any(engine.late_loads for engine in self.engines.values())
        assert all(engine.engine_version == self.steps for engine in self.engines.values() if not engine.ended)


async def change_at_random(world: World, rng: random.Random, *, kills: bool) -> None:
    """Until the run is over: a lane joins, leaves, or dies, every few seconds."""
    while True:
        await asyncio.sleep(rng.uniform(1, 30))
        pool: Any = rng.choice([world.rollout, world.judges])
        what = rng.random()
        try:
            if what < 0.4 and len(pool) < 4:
                await pool.add(world.engine() if pool is world.rollout else world.judge())
                world.changes += 1
            elif what < 0.8 and len(pool) > 1:
                victim = rng.choice(list(pool))
                await pool.remove(victim.name, within_s=rng.choice([0, 1, 60]))
                world.changes += 1
            elif kills:
                rng.choice(list(pool))._process.dies.set()
        except ValueError as refused:  # the others had left or were given up
            assert "last lane" in str(refused)  # noqa: PT017
        except WorkerLostError:  # it was killed while it joined
            assert kills


@pytest.mark.parametrize("seed", range(8))
def test_pools_of_random_size_lose_no_group_train_none_twice_and_keep_the_staleness_bound(seed: int):
    rng = random.Random(seed)
    target = seed % 3
    worlds: list[World] = []

    def main(clock: Clock) -> Any:
        staleness = StalenessConfig(target_staleness=target, max_staleness=target + 1)
        world = World(clock, steps=50, rollouts=rng.randint(1, 3), judges=rng.randint(1, 3), staleness=staleness)
        worlds.append(world)
        return world.run(lambda: change_at_random(world, rng, kills=seed % 2 == 1))

    committed, _, left_behind = run_virtual(main)
    (world,) = worlds
    assert committed == 50
    world.check(bound=target + 1)
    assert left_behind == set()
    assert world.changes > 15


def simulate(meanwhile: Callable[[World], Any], *, steps: int = 12, **options: Any) -> tuple[World, Witness]:
    worlds: list[World] = []

    def main(clock: Clock) -> Any:
        world = World(clock, steps=steps, **options)
        worlds.append(world)
        return world.run(lambda: meanwhile(world))

    committed, _, left_behind = run_virtual(main)
    assert (committed, left_behind) == (steps, set())
    worlds[0].check(bound=2)
    return worlds[0], worlds[0].witness


def told(witness: Witness, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in witness.events if event == name]


def test_an_engine_that_joins_holds_the_current_weights_before_it_takes_work():
    async def grow(world: World) -> None:
        await asyncio.sleep(100)
        await world.rollout.add(world.engine())
        (joined,) = [engine for name, engine in world.engines.items() if name != "rollout-0"]
        assert joined.engine_version == world.ledger._ledger.version > 0
        assert not joined.started

    world, witness = simulate(grow)
    assert all(engine.started for engine in world.engines.values())
    assert [fields["worker"] for fields in told(witness, "lane_joined")] == [list(world.engines)[1]]


def test_an_engine_whose_weights_cannot_be_attested_does_not_join_and_its_process_ends():
    async def grow(world: World) -> None:
        await asyncio.sleep(100)
        lane = world.engine(loads_silently_fail=True)
        with pytest.raises(AttestationError, match="other log-probs"):
            await world.rollout.add(lane)
        assert lane not in world.rollout
        assert world.engines.pop(lane.name).ended

    simulate(grow)


def test_a_lane_that_drains_in_time_returns_nothing_and_its_process_ends():
    async def shrink(world: World) -> None:
        await asyncio.sleep(50)
        assert await world.rollout.remove("rollout-0", within_s=60) == 0
        assert await world.judges.remove(next(iter(world.judges)).name, within_s=60) == 0

    world, witness = simulate(shrink, rollouts=2, judges=2)
    assert world.engines["rollout-0"].ended
    assert [fields["returned"] for fields in told(witness, "lane_left")] == [0, 0]
    assert not told(witness, "worker_lost")
    assert not told(witness, "group_lost")
    assert (len(world.rollout), len(world.judges)) == (1, 1)


def test_a_lane_that_waits_for_work_leaves_at_once():
    async def shrink(world: World) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(200)  # credits and groups are used up: the learner is slow
        assert world.ledger.out() == []
        began = loop.time()
        assert await world.rollout.remove("rollout-0", within_s=60) == 0
        assert await world.judges.remove(next(iter(world.judges)).name, within_s=60) == 0
        assert loop.time() == began

    simulate(shrink, steps=3, rollouts=2, judges=2, learn_s=1000)


def test_groups_of_a_slow_lane_that_must_leave_are_finished_by_others_and_count_as_no_loss():
    handed_back = []

    async def shrink(world: World) -> None:
        await world.rollout.add(slow := world.engine(delay_s=10_000))
        await world.judges.add(mute := world.judge(delay_s=10_000))
        await asyncio.sleep(120)
        handed_back.append(await world.rollout.remove(slow.name, within_s=5))
        handed_back.append(await world.judges.remove(mute.name, within_s=5))

    _, witness = simulate(shrink)
    assert [fields["returned"] for fields in told(witness, "lane_left")] == handed_back
    assert min(handed_back) > 0
    assert not told(witness, "group_lost")
    assert not told(witness, "judge_lost")


def test_a_lane_that_is_being_replaced_leaves_at_once_and_is_not_replaced():
    async def shrink(world: World) -> None:
        loop = asyncio.get_running_loop()
        lane = next(iter(world.rollout))
        await asyncio.sleep(50)
        lane.lost(WorkerLostError("its node died"), lane.incarnation)
        began = loop.time()
        await world.rollout.remove(lane.name, within_s=60)
        assert loop.time() == began

    world, witness = simulate(shrink, rollouts=2)
    assert not told(witness, "worker_recovered")
    assert world.engines["rollout-0"].ended


def test_removing_the_last_lane_adding_a_duplicate_and_removing_an_unknown_one_are_refused():
    async def refused(world: World) -> None:
        with pytest.raises(ValueError, match=r"rollout-0 is the last lane of its pool; add another one first"):
            await world.rollout.remove("rollout-0")
        with pytest.raises(ValueError, match="no lane 'rollout-9'; it has rollout-0"):
            await world.rollout.remove("rollout-9")
        with pytest.raises(ValueError, match="has a lane named rollout-0"):
            await world.rollout.add(next(iter(world.rollout)))

    simulate(refused)


async def test_a_call_to_a_worker_that_leaves_ends_and_a_later_one_is_refused():
    engine = Engine()
    lane = SupervisedRollout(engine, Guard(engine, RECOVERY))
    calling = asyncio.ensure_future(lane.guard.call(asyncio.Event().wait()))
    await asyncio.sleep(0)
    await lane.retire()
    with pytest.raises(WorkerLeftError, match="rollout-0 left its pool"):
        await calling
    with pytest.raises(WorkerLeftError):
        await lane.guard.call(engine.heartbeat())
    assert await lane.ready() is False


async def test_a_seat_has_room_again_when_a_group_is_finished_and_none_when_its_lane_leaves():
    seat = Seat(FakeRollout(groups_at_once=1))
    seat.take(1)
    waiting = asyncio.ensure_future(seat.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    seat.give(1)
    assert await waiting == 1
    seat.take(1)
    waiting = asyncio.ensure_future(seat.room())
    await asyncio.sleep(0)
    seat.leave()
    assert await waiting == 0
