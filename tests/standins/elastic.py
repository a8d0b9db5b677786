"""A run in virtual time whose load changes and whose machines come and go: real loop, ledger, pools and guards, and
processes that only wait.

    outcome = simulate(Scenario(steps=60, loads=(Timing(0, 8, 0.5, 8),), most=3))
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from solon.clock import Clock
from solon.elasticity.config import ElasticityConfig
from solon.elasticity.controller import Elasticity
from solon.elasticity.decide import Bounds
from solon.elasticity.elastic_pool import ElasticPool
from solon.errors import RunFailedError, WorkerLostError
from solon.ledger.ledger import Lease, Work
from solon.ledger.staleness import StalenessConfig
from solon.loop import run_loop
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import LoadReceipt, StepReport, Weights
from solon.recovery.guard import Guard, RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedRollout
from tests.unit.fakes import FakeJudge, FakeLearner, FakeRollout, Witness, make_group, make_lanes, make_weights
from tests.unit.virtual_time import run_virtual

RECOVERY = RecoveryConfig(backoff_s=0, max_restarts=100, beat_every_s=5, beat_timeout_s=30)
BATCH = 8
SLOTS = 2
"""Groups that an engine decodes together."""
LOAD_S = 20.0
"""A worker that has a place loads its model."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long groups take from a time on, seconds: generation in one slot, a label, and a step of the learner."""

    begins_s: float
    generate_s: float
    label_s: float
    learn_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A machine with a worker of a pool goes. notice_s: announced so long before; 0: not announced."""

    at_s: float
    pool: str
    notice_s: float = 0.0
    gone_s: float = 300.0
    """Until another machine takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run. sizes: the sizes at the start and the least; most: equal to them for pools of fixed size."""

    steps: int
    timings: Sequence[Timing]
    sizes: tuple[int, int] = (1, 1)
    most: tuple[int, int] = (1, 1)
    losses: Sequence[Loss] = ()
    rooms: tuple[int, int] = (10, 10)
    """Machines with a place for an engine, and for a judge."""
    config: ElasticityConfig = field(default_factory=ElasticityConfig)
    target: int = 2
    bound: int = 4
    spread: float = 0.2
    """Of the seconds for a group."""


class Mortal:
    """A process that ends for good, or dies and is replaced when there is a machine for it."""

    def __init__(self, world: World, pool: str, name: str) -> None:
        self.world, self.pool, self.name = world, pool, name
        self.ended = self.is_dead = False

    async def restart(self, placed: Callable[[], None]) -> None:
        await self.world.place(self.pool)
        placed()
        await asyncio.sleep(LOAD_S)
        self.is_dead = False
        self.reborn()

    def reborn(self) -> None: ...

    async def heartbeat(self) -> float:
        self.check()
        return 0.0

    def check(self) -> None:
        if self.is_dead or self.ended:
            raise WorkerLostError(f"{self.name} died")

    async def work(self, seconds: float, seed: int) -> None:
        """Raises WorkerLostError when the process dies meanwhile."""
        jitter = 1 + self.world.scenario.spread * random.Random(seed).uniform(-1, 1)
        until = self.world.clock.now() + seconds * jitter
        while (left := until - self.world.clock.now()) > 1e-9:
            self.check()
            await asyncio.sleep(min(left, 1.0))
        self.check()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if not self.is_dead:
                self.world.leave(self.pool)


class Engine(Mortal, FakeRollout):
    def __init__(self, world: World, name: str) -> None:
        FakeRollout.__init__(self, name=name, groups_at_once=2 * SLOTS)
        Mortal.__init__(self, world, "rollout", name)
        self._slots = asyncio.Semaphore(SLOTS)

    def reborn(self) -> None:
        self.engine_version = -1  # holds nothing until it joins

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Any]]:
        tasks = [asyncio.ensure_future(self._one(item)) for item in work]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, item: Assignment) -> tuple[GenerationReport, Any]:
        async with self._slots:
            assert self.engine_version >= item.grant.version, "work was given to an engine with older weights"
            head = self.engine_version
            await self.work(self.world.timing.generate_s, item.grant.ordinal)
        group = make_group(item.grant.ordinal, version=head, attempt=item.grant.attempt)
        report = GenerationReport(
            ordinal=item.grant.ordinal, attempt=item.grant.attempt, head=head, num_tokens=6, nbytes=100
        )
        return report, group

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        self.check()
        return await super().load_weights(weights)


class Judge(Mortal, FakeJudge):
    def __init__(self, world: World, name: str) -> None:
        FakeJudge.__init__(self, name=name, groups_at_once=2)
        Mortal.__init__(self, world, "judge", name)
        self._engine = asyncio.Lock()

    async def label(self, work: Work) -> tuple[LabelReport, Any]:
        async with self._engine:
            await self.work(self.world.timing.label_s, work.ordinal)
        return await super().label(work)


@dataclass
class Learner(FakeLearner):
    world: Any = None
    busy_s: float = 0.0

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, Any]:
        self.delay_s = self.world.timing.learn_s
        self.busy_s += self.delay_s
        return await super().step(lease)


class World:
    """The run. Machines are counted by pool; a worker takes one while it lives."""

    def __init__(self, clock: Clock, scenario: Scenario) -> None:
        self.clock, self.scenario = clock, scenario
        self.free = dict(zip(("rollout", "judge"), scenario.rooms, strict=True))
        self._freed = asyncio.Condition()
        self._drained: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.learner = Learner(world=self)
        self.sizes: list[tuple[float, str, int]] = []
        lanes, self.witness = make_lanes(
            batch_groups=BATCH, steps=scenario.steps, clock=clock, learner=self.learner, max_losses=1000,
            max_dropped_share=1.0, lease_s=7200.0,
            staleness=StalenessConfig(target_staleness=scenario.target, max_staleness=scenario.bound),
        )  # fmt: skip
        self.ledger: Any = lanes.ledger
        self._processes: dict[str, Mortal] = {}
        self.pools: dict[str, Pool[Any]] = {
            name: Pool([self._lane(name, f"{name}-{n}") for n in range(size)])
            for name, size in zip(("rollout", "judge"), scenario.sizes, strict=True)
        }
        rollout = self.pools["rollout"]
        self.publication = Publication(
            rollout, settings=PublishConfig(logprob_tolerance=1e-3, timeout_s=60), initial=make_weights(0), clock=clock
        )
        rollout.entry = self.publication
        self.lanes = replace(
            lanes, rollout=rollout, judges=self.pools["judge"], publication=self.publication, grace_s=300
        )

    @property
    def timing(self) -> Timing:
        """Of this moment."""
        now = self.clock.now()
        return [timing for timing in self.scenario.timings if timing.begins_s <= now][-1]

    async def place(self, pool: str) -> None:
        """Wait for a machine."""
        async with self._freed:
            await self._freed.wait_for(lambda: self.free[pool] > 0)
            self.free[pool] -= 1

    def leave(self, pool: str) -> None:
        """A worker has left its machine to others."""
        self.free[pool] += 1
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._freed:
                self._freed.notify_all()

        self._later(tell())

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lane(self, pool: str, name: str) -> Any:
        """On a machine that was taken."""
        process = self._processes[name] = (Engine if pool == "rollout" else Judge)(self, name)
        guard = Guard(process, RECOVERY, emit=self.witness.event, clock=self.clock)
        if isinstance(process, Engine):
            return SupervisedRollout(process, guard)
        return SupervisedJudge(process, guard)

    async def _start(self, pool: str, name: str, place_within_s: float) -> Any:
        try:
            await self.clock.within(self.place(pool), place_within_s)
        except TimeoutError:
            raise RunFailedError(f"no place for {name} within {place_within_s:g} s") from None
        try:
            await asyncio.sleep(LOAD_S)
        except asyncio.CancelledError:
            self.leave(pool)
            raise
        return self._lane(pool, name)

    async def run(self) -> int:
        """Committed steps."""
        for name, size in zip(("rollout", "judge"), self.scenario.sizes, strict=True):
            self.free[name] -= size
        await self.publication.verify(make_weights(0), make_weights(0))
        elastic = [
            ElasticPool(
                name, pool, Bounds(least=least, most=most), emit=self.witness.event,
                start=lambda worker, within_s, name=name: self._start(name, worker, within_s),
            )
            for (name, pool), least, most in zip(
                self.pools.items(), self.scenario.sizes, self.scenario.most, strict=True
            )
        ]  # fmt: skip
        others = [asyncio.ensure_future(work) for work in (self._lose(), self._watch_sizes())]
        try:
            async with Elasticity(
                self.scenario.config, elastic, learned=lambda: (len(self.learner.batches), self.learner.busy_s),
                batch_groups=BATCH, in_flight=max(1, self.scenario.target) * BATCH, emit=self.witness.event,
                drained=self._ask, clock=self.clock,
            ):  # fmt: skip
                return await run_loop(self.lanes, steps=self.scenario.steps, min_valid=2, stop=asyncio.Event())
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for pool in self.pools.values():
                for lane in pool:
                    await lane.guard.close()

    async def _ask(self) -> dict[str, float | None]:
        now = self.clock.now()
        return {name: end - now for name, end in self._drained.items() if not self._processes[name].ended}

    async def _lose(self) -> None:
        """The machines that go."""
        for number, loss in enumerate(sorted(self.scenario.losses, key=lambda loss: loss.at_s - loss.notice_s)):
            await asyncio.sleep(max(0.0, loss.at_s - loss.notice_s - self.clock.now()))
            lanes = [lane for lane in self.pools[loss.pool] if lane.is_up and lane.name not in self._drained]
            if lanes:
                lane = random.Random(number).choice(lanes)
                self._later(self._take(lane.name, loss))

    async def _take(self, name: str, loss: Loss) -> None:
        if loss.notice_s:
            self._drained[name] = loss.at_s
            await asyncio.sleep(max(0.0, loss.at_s - self.clock.now()))
            del self._drained[name]
        process = self._processes[name]
        if process.ended:
            self.free[loss.pool] -= 1  # its machine went without it
        process.is_dead = True
        await asyncio.sleep(loss.gone_s)
        self.leave(loss.pool)

    async def _watch_sizes(self) -> None:
        while True:
            for name, pool in self.pools.items():
                self.sizes.append((self.clock.now(), name, len(pool)))
            await asyncio.sleep(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out of a run."""

    committed: int
    seconds: float
    witness: Witness
    counts: dict[str, int]
    trained: list[int]
    """Ordinals, in the order of training."""
    sizes: list[tuple[float, str, int]] = field(repr=False)
    """(second, pool, size)"""

    @property
    def steps_per_hour(self) -> float:
        return 3600 * self.committed / self.seconds

    def told(self, name: str) -> list[dict[str, Any]]:
        """The events of this name."""
        return [fields for event, fields in self.witness.events if event == name]

    def size_at(self, second: float, pool: str) -> int:
        """The size of a pool then."""
        return [size for at, name, size in self.sizes if name == pool and at <= second][-1]

    def lane_seconds(self, pool: str) -> float:
        """What the lanes of a pool cost."""
        at = [(second, size) for second, name, size in self.sizes if name == pool]
        return sum((later - now) * size for (now, size), (later, _) in itertools.pairwise(at))

    def check(self, *, steps: int, bound: int) -> None:
        """Nothing was lost, nothing trained twice, and the bound held. Raises AssertionError."""
        counts = self.counts
        assert self.committed == steps
        assert len(self.trained) == len(set(self.trained)) == counts["committed"] == BATCH * steps
        assert counts["admitted"] == counts["committed"] + counts["dropped"] + counts["held"]
        assert (counts["dropped"], counts["held"]) == (0, 0)
        assert max(self.witness.staleness) <= bound


def simulate(scenario: Scenario) -> Outcome:
    """Run it; every invariant is checked."""
    worlds: list[World] = []

    async def main(clock: Clock) -> int:
        worlds.append(World(clock, scenario))
        return await worlds[0].run()

    committed, seconds, _ = run_virtual(main)
    (world,) = worlds
    outcome = Outcome(
        committed=committed, seconds=seconds, witness=world.witness, counts=world.ledger._ledger.counts(),
        trained=[ordinal for batch in world.learner.batches for ordinal in batch], sizes=world.sizes,
    )  # fmt: skip
    outcome.check(steps=scenario.steps, bound=scenario.bound)
    return outcome
