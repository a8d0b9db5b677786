"""Workers that die, hang or return: the guard's promises, and the loop on workers that are killed at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from solon.clock import Clock
from solon.errors import (
    AttestationError,
    CallLostError,
    EngineFailedError,
    InputError,
    PayloadLostError,
    RunFailedError,
    WorkerLostError,
)
from solon.ledger.ledger import Lease, Work
from solon.loop import run_loop
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import StepReport, Weights
from solon.recovery.guard import LOST_CALLS, Guard, RecoveryConfig
from solon.recovery.restarts import LONGEST_PAUSE_S, Restarts
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedLearner, SupervisedRollout
from tests.unit.fakes import FakeJudge, FakeLearner, FakeRollout, make_lanes, make_weights

QUICK = RecoveryConfig(backoff_s=0, beat_every_s=0.01, beat_timeout_s=0.05, max_restarts=1000, grace_s=0.5)


@dataclass
class Process:
    """Something that can be killed, can hang, and can be started again."""

    name: str = "worker-0"
    alive: bool = True
    hangs: bool = False
    starts: int = 0
    fails_to_start: int = 0
    stalled_s: float = 0.0
    calls: int = 0
    groups_at_once: int = 1
    lost_calls: int = 0
    """This many answers will not arrive."""

    async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
        self.starts += 1
        await asyncio.sleep(0)
        if self.starts <= self.fails_to_start:
            raise WorkerLostError("no memory")
        self.alive, self.hangs, self.stalled_s = True, False, 0.0

    async def heartbeat(self) -> float:
        await self.touch()
        return self.stalled_s

    async def touch(self) -> str:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if not self.alive:
            raise WorkerLostError(f"{self.name} died")
        if self.lost_calls:
            self.lost_calls -= 1
            raise CallLostError(f"{self.name} could not be reached")
        return "answer"


def make_guard(process: Process, **config: Any) -> tuple[Guard, list[tuple[str, dict[str, Any]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    guard = Guard(process, QUICK.model_copy(update=config), emit=lambda name, **fields: events.append((name, fields)))
    return guard, events


async def soon(what: Any) -> Any:
    return await asyncio.wait_for(what, timeout=10)


async def test_a_lost_worker_is_replaced_once_however_many_calls_notice():
    process = Process(alive=False)
    guard, events = make_guard(process)
    outcomes = await asyncio.gather(*(guard.call(process.touch()) for _ in range(5)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WorkerLostError}
    assert await soon(guard.ready())
    assert process.starts == 1
    assert await guard.call(process.touch()) == "answer"
    assert [name for name, _ in events] == ["worker_lost", "worker_recovered"]


async def test_a_hanging_worker_is_detected_without_a_call_and_its_calls_end():
    process = Process()
    guard, events = make_guard(process)
    guard.start()
    process.hangs = True
    with pytest.raises(WorkerLostError):
        await soon(guard.call(process.touch()))
    assert await soon(guard.ready())
    assert "did not answer within" in events[0][1]["cause"]
    await guard.close()


async def test_a_worker_whose_answer_is_lost_stays_if_it_answers_a_heartbeat():
    process = Process(lost_calls=2)
    guard, events = make_guard(process)
    outcomes = await asyncio.gather(*(guard.call(process.touch()) for _ in range(2)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CallLostError}
    assert guard.is_up
    assert await guard.call(process.touch()) == "answer"
    assert process.starts == 0
    assert [name for name, _ in events] == ["call_lost"]


async def test_a_call_that_may_be_repeated_is_made_again_to_the_same_worker():
    process = Process(lost_calls=1)
    guard, _ = make_guard(process)
    assert await soon(guard.retry(process.touch)) == "answer"
    assert process.starts == 0


@pytest.mark.parametrize("what", ["hangs", "is not reached"])
async def test_a_worker_whose_answer_is_lost_and_that_answers_no_heartbeat_is_replaced(what: str):
    process = Process(lost_calls=1)
    guard, events = make_guard(process)
    call = guard.call(process.touch())
    if what == "hangs":
        process.heartbeat = asyncio.Event().wait  # type: ignore[method-assign,assignment]
    else:
        process.lost_calls = 3
    with pytest.raises(CallLostError):
        await soon(call)
    assert await soon(guard.ready())
    assert process.starts == 1
    assert [name for name, _ in events] == ["worker_lost", "worker_recovered"]


async def test_a_worker_behind_a_bad_connection_is_replaced_eventually():
    process = Process()
    guard, events = make_guard(process)
    for _ in range(LOST_CALLS + 1):
        process.lost_calls = 1
        with pytest.raises(CallLostError):
            await guard.call(process.touch())
    assert await soon(guard.ready())
    assert process.starts == 1
    assert [name for name, _ in events] == ["call_lost"] * LOST_CALLS + ["worker_lost", "worker_recovered"]


async def test_a_lost_heartbeat_is_requested_again():
    process = Process()
    guard, events = make_guard(process)
    guard.start()
    process.lost_calls = 1
    while process.calls < 4:  # noqa: ASYNC110 - the test shows that no notification is needed
        await asyncio.sleep(0.01)
    assert not events
    await guard.close()


async def test_a_late_error_of_a_lost_worker_does_not_end_the_next_one():
    process = Process()
    guard, events = make_guard(process)
    late = [asyncio.ensure_future(guard.call(asyncio.Event().wait())) for _ in range(3)]
    await asyncio.sleep(0)
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WorkerLostError}
    await asyncio.sleep(0.05)
    guard.lost(WorkerLostError("an old call"), 0)
    assert process.starts == 1
    assert [name for name, _ in events] == ["worker_lost", "worker_recovered"]


async def test_an_engine_with_work_and_without_progress_is_replaced():
    process = Process(stalled_s=700.0)
    guard, events = make_guard(process)
    guard.start()
    while process.starts == 0:  # noqa: ASYNC110 - the test shows that no notification is needed
        await asyncio.sleep(0.01)
    assert "has had work for 700 s without progress" in events[0][1]["cause"]
    await guard.close()


async def test_a_restart_storm_ends_with_one_cause():
    process = Process(alive=False, fails_to_start=100)
    guard, events = make_guard(process, max_restarts=3)
    with pytest.raises(WorkerLostError):
        await guard.call(process.touch())
    with pytest.raises(RunFailedError, match=r"replaced 3 times within 600 s .*max_restarts = 3 .*cause: no memory"):
        await soon(guard.ready())
    assert process.starts == 3
    assert [name for name, _ in events] == ["worker_lost", "restart_failed", "restart_failed", "restart_failed"]


async def test_a_replacement_that_fails_to_start_is_tried_again():
    class Full(Process):
        async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
            if self.starts < 2:
                self.starts += 1
                raise MemoryError("the device is full")
            await super().restart()

    process = Full(alive=False)
    guard, events = make_guard(process, max_restarts=3)
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    assert await soon(guard.ready())
    causes = [fields["cause"] for name, fields in events if name == "restart_failed"]
    assert causes == ["a new worker-0 did not start: MemoryError: the device is full"] * 2


async def test_a_worker_that_starts_slower_than_the_window_and_fails_at_its_first_work_is_not_replaced_for_ever():
    now = [0.0]

    class Slow(Process):
        async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
            await super().restart()
            now[0] += 200  # of a window of 60
            self.alive = False

    process = Slow(alive=False)
    guard = Guard(process, QUICK.model_copy(update={"max_restarts": 3, "window_s": 60}), clock=Clock(lambda: now[0]))
    with pytest.raises(RunFailedError, match=r"replaced 3 times in a row.*recovery.max_restarts = 3.*worker-0 died"):
        await soon(guard.retry(process.touch))
    assert process.starts == 3


async def test_an_answer_between_two_losses_resets_the_count():
    now = [0.0]
    process = Process()
    guard = Guard(process, QUICK.model_copy(update={"max_restarts": 2, "window_s": 60}), clock=Clock(lambda: now[0]))
    for _ in range(6):
        now[0] += 61
        process.alive = False
        with pytest.raises(WorkerLostError):
            await guard.call(process.touch())
        assert await soon(guard.retry(process.touch)) == "answer"
    assert process.starts == 6


async def test_an_engine_with_an_internal_failure_is_replaced_like_a_dead_one_and_its_cause_is_reported():
    process = Process()
    guard, events = make_guard(process)

    async def fails() -> str:
        raise EngineFailedError("engine rollout-0 failed while decoding: OutOfMemoryError: CUDA out of memory")

    with pytest.raises(EngineFailedError):
        await guard.call(fails())
    assert await soon(guard.ready())
    assert process.starts == 1
    assert "CUDA out of memory" in dict(events)["worker_lost"]["cause"]


async def test_an_engine_that_always_fails_internally_ends_the_run_with_the_cause():
    process = Process()
    guard, _ = make_guard(process, max_restarts=2)

    async def fails() -> str:
        raise EngineFailedError("engine rollout-0 failed while decoding: AcceleratorError: illegal memory access")

    with pytest.raises(RunFailedError, match=r"max_restarts = 2 allows; last cause: .*illegal memory access"):
        await soon(guard.retry(fails))
    assert process.starts == 2


@pytest.mark.parametrize("bug", [InputError("a bad prompt"), TypeError("a bug"), AttestationError("stale weights")])
async def test_bad_input_and_our_own_bugs_replace_nothing(bug: Exception):
    process = Process()
    guard, events = make_guard(process)

    async def fails() -> str:
        raise bug

    with pytest.raises(type(bug)):
        await guard.call(fails())
    assert process.starts == 0
    assert events == []


async def test_restarts_are_forgotten_when_their_window_has_passed():
    now = [0.0]
    process = Process()
    guard = Guard(process, QUICK.model_copy(update={"max_restarts": 1, "window_s": 60}), clock=Clock(lambda: now[0]))
    for start in (0.0, 61.0, 122.0):
        now[0] = start
        guard.lost(WorkerLostError("killed"), guard.incarnation)
        assert await soon(guard.ready())
    now[0] = 123.0
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    with pytest.raises(RunFailedError):
        await soon(guard.ready())


async def test_a_run_continues_without_one_of_several_workers_and_ends_with_the_last():
    first, second = Process(name="rollout-0", fails_to_start=99), Process(name="rollout-1", fails_to_start=99)
    guards = [make_guard(process, max_restarts=1)[0] for process in (first, second)]
    Pool([SupervisedJudge(process, guard) for process, guard in zip((first, second), guards, strict=True)])
    guards[0].lost(WorkerLostError("killed"), 0)
    assert await soon(guards[0].ready()) is False
    guards[1].lost(WorkerLostError("killed"), 0)
    with pytest.raises(RunFailedError, match="rollout-1 was replaced"):
        await soon(guards[1].ready())


async def test_a_worker_is_up_only_when_it_has_joined_again():
    joined = asyncio.Event()
    process = Process()
    guard = Guard(process, QUICK, rejoin=joined.wait)
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    waiting = asyncio.ensure_future(guard.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    joined.set()
    assert await soon(waiting)


async def test_a_replacement_that_is_not_ready_in_time_counts_as_lost():
    class Slow(Process):
        async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
            placed()
            await asyncio.sleep(60)

    guard, events = make_guard(Slow(), restart_timeout_s=0.01, max_restarts=2)
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    with pytest.raises(RunFailedError, match=r"was not ready within recovery.restart_timeout_s"):
        await soon(guard.ready())


async def test_the_start_of_a_node_and_the_loading_of_a_model_have_separate_deadlines():
    class Placed(Process):
        async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
            await asyncio.sleep(0.2)
            placed()

    guard, events = make_guard(Placed(), restart_timeout_s=0.05, node_timeout_s=30, max_restarts=1)
    guard.lost(WorkerLostError("its node was taken away"), guard.incarnation)
    assert await soon(guard.ready())
    assert [name for name, _ in events] == ["worker_lost", "worker_recovered"]


async def test_a_replacement_without_a_node_ends_the_run_at_its_deadline_unless_others_do_its_work():
    class Homeless(Process):
        async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
            await asyncio.sleep(60 if self.alive else 0)

    guard, events = make_guard(Homeless(), node_timeout_s=0.01)
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    with pytest.raises(RunFailedError, match=r"was not placed on a node within recovery.node_timeout_s = 0.01 s; look"):
        await soon(guard.ready())
    assert [name for name, _ in events] == ["worker_lost", "restart_failed"]

    process = Homeless()
    guard, events = make_guard(process, node_timeout_s=0.01)
    guard.spare = lambda: True
    guard.lost(WorkerLostError("killed"), guard.incarnation)
    while len(events) < 4:  # noqa: ASYNC110 - it is tried again and again
        await asyncio.sleep(0.01)
    process.alive = False  # a node has come
    assert await soon(guard.ready())
    assert not guard.given_up


# -- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class MortalRollout(FakeRollout):
    """Dies in the middle of a stream when it is killed; a new one holds version 0 until it joins."""

    process: Process = field(default_factory=Process)

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Any]]:
        async for item in super().generate(work):
            await self.process.touch()
            yield item

    async def load_weights(self, weights: Weights) -> Any:
        await self.process.touch()
        return await super().load_weights(weights)

    async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
        await self.process.restart()
        self.engine_version = 0

    async def heartbeat(self) -> float:
        return await self.process.heartbeat()


@dataclass
class MortalJudge(FakeJudge):
    process: Process = field(default_factory=Process)

    async def label(self, work: Work) -> tuple[LabelReport, Any]:
        await self.process.touch()
        answer = await super().label(work)
        await self.process.touch()
        return answer

    async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
        await self.process.restart()

    async def heartbeat(self) -> float:
        return await self.process.heartbeat()


@dataclass
class MortalLearner(FakeLearner):
    """Its weights are the list of all batches it was trained on."""

    process: Process = field(default_factory=Process)
    trained: list[tuple[int, ...]] = field(default_factory=list)
    staged: list[tuple[int, ...]] = field(default_factory=list)
    written: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, Any]:
        await self.process.touch()
        assert lease.step == len(self.trained), "a step was handed to a learner at another version"
        report, _, _ = await super().step(lease)
        await self.process.touch()
        self.trained.append(lease.ordinals)
        weights = replace(make_weights(lease.step + 1), fingerprint=str(self.trained))
        return report, weights, weights

    async def raise_kl(self, factor: float) -> float:
        await self.process.touch()
        return factor

    async def stage(self, *, copies: bool) -> None:
        await self.process.touch()
        self.staged = list(self.trained)

    async def write(self, directory: str) -> None:
        await self.process.touch()
        self.written[directory] = self.staged

    async def restart_from(self, checkpoint: str, placed: Callable[[], None] = lambda: None) -> tuple[Weights, Any]:
        await self.process.restart()
        self.trained = list(self.written.get(checkpoint, []))
        return make_weights(0), make_weights(0)

    async def heartbeat(self) -> float:
        return await self.process.heartbeat()


class Mortal:
    """Lanes on mortal workers, as a run has them."""

    def __init__(self, *, steps: int, rollouts: int = 2, judges: int = 2) -> None:
        self.engines = [MortalRollout(name=f"rollout-{n}", groups_at_once=6, delay_s=0.001) for n in range(rollouts)]
        self.judges = [MortalJudge(name=f"judge-{n}", groups_at_once=6, delay_s=0.001) for n in range(judges)]
        self.learner = MortalLearner(delay_s=0.002)
        lanes, self.witness = make_lanes(steps=steps, max_losses=1000)
        emit = self.witness.event
        guarded = [SupervisedRollout(engine, Guard(engine, QUICK, emit=emit)) for engine in self.engines]
        publication = Publication(
            guarded, settings=PublishConfig(logprob_tolerance=1e-3, timeout_s=0.5), initial=make_weights(0)
        )
        self.lanes = replace(
            lanes,
            rollout=Pool(guarded, entry=publication),
            judges=Pool([SupervisedJudge(judge, Guard(judge, QUICK, emit=emit)) for judge in self.judges]),
            learner=SupervisedLearner(self.learner, QUICK, checkpoint="", emit=emit),
            publication=publication,
            grace_s=0.5,
        )
        self.guards = [lane.guard for lane in (*self.lanes.rollout, *self.lanes.judges, self.lanes.learner)]  # type: ignore[attr-defined]
        self.processes = [w.process for w in (*self.engines, *self.judges, self.learner)]
        for process, worker in zip(self.processes, (*self.engines, *self.judges, self.learner), strict=True):
            process.name = worker.name

    async def run(self, steps: int) -> int:
        for guard in self.guards:
            guard.start()
        try:
            return await run_loop(self.lanes, steps=steps, min_valid=2, stop=asyncio.Event())
        finally:
            for guard in self.guards:
                await guard.close()


@pytest.mark.parametrize("seed", range(6))
async def test_every_group_is_trained_once_whichever_workers_die_or_hang_at_random(seed: int):
    steps, rng = 25, random.Random(seed)
    world = Mortal(steps=steps)

    async def killer() -> None:
        for _ in range(40):
            await asyncio.sleep(rng.uniform(0.001, 0.03))
            victim = rng.choice(world.processes)
            what = rng.random()
            if what < 0.6:
                victim.alive = False
            elif what < 0.8:
                victim.lost_calls = 1
            else:
                victim.hangs = True

    killing = asyncio.ensure_future(killer())
    try:
        assert await asyncio.wait_for(world.run(steps), timeout=20) == steps
    finally:
        killing.cancel()
    counts = await world.lanes.ledger.counts()  # type: ignore[attr-defined]
    assert (counts["admitted"], counts["committed"], counts["dropped"], counts["held"]) == (100, 100, 0, 0)
    trained = [ordinal for batch in world.learner.trained for ordinal in batch]
    assert sorted(trained) == list(range(100))
    assert world.witness.versions == list(range(1, steps + 1))
    assert max(world.witness.staleness) <= 4
    assert any(name == "worker_recovered" for name, _ in world.witness.events)
    # Nothing was recorded twice either: one generation and one label of each group that counts.
    lost = [fields["ordinal"] for name, fields in world.witness.events if name == "group_lost"]
    assert len(world.witness.labelled_ordinals) == 100
    assert len(world.witness.generated_ordinals) <= 100 + len(lost)


async def test_a_learner_that_dies_comes_back_with_the_same_weights_and_nothing_is_rolled_back():
    world = Mortal(steps=6)
    seen = []

    async def checkpoint(step: int) -> None:
        seen.append(step)
        if step in (2, 5):
            world.learner.process.alive = False

    world.lanes = replace(world.lanes, checkpoint=checkpoint)
    assert await asyncio.wait_for(world.run(6), timeout=20) == 6
    again = [fields for name, fields in world.witness.events if name == "learner_trained_again"]
    assert [(fields["steps"], fields["same_weights"]) for fields in again] == [(2, True), (5, True)]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert sorted(o for batch in world.learner.trained for o in batch) == list(range(24))


@pytest.mark.parametrize("dies", [False, True])
async def test_a_checkpoint_leaves_the_batches_that_were_trained_while_it_was_written(dies: bool):
    """dies: the learner is lost when its files are written, and the checkpoint is completed while its successor starts
    from the one before it."""
    world = Mortal(steps=6)
    lane = world.lanes.learner
    assert isinstance(lane, SupervisedLearner)

    async def checkpoint(step: int) -> None:
        if step == 2:
            await lane.stage(copies=True)
        if step == 4:
            await lane.write("two")
            if dies:
                restart = world.learner.restart_from

                async def restart_from(checkpoint: str, placed: Callable[[], None] = lambda: None) -> Any:
                    weights = await restart(checkpoint, placed)
                    lane.saved("two")
                    return weights

                world.learner.restart_from = restart_from  # type: ignore[method-assign]
            else:
                lane.saved("two")
            world.learner.process.alive = False

    world.lanes = replace(world.lanes, checkpoint=checkpoint)
    assert await asyncio.wait_for(world.run(6), timeout=20) == 6
    again = [fields for name, fields in world.witness.events if name == "learner_trained_again"]
    assert [(fields["steps"], fields["same_weights"]) for fields in again] == [(4 if dies else 2, True)]
    assert sorted(o for batch in world.learner.trained for o in batch) == list(range(24))


async def test_a_staged_state_is_lost_with_its_learner():
    world = Mortal(steps=2)
    lane = world.lanes.learner
    assert isinstance(lane, SupervisedLearner)
    lost = []

    async def checkpoint(step: int) -> None:
        if step == 1:
            await lane.stage(copies=True)
            world.learner.process.alive = False
            for _ in range(2):  # at its death, and of its successor, which has staged nothing
                try:
                    await lane.write("one")
                except WorkerLostError as error:
                    lost.append(str(error))
                await lane.ready()

    world.lanes = replace(world.lanes, checkpoint=checkpoint)
    assert await asyncio.wait_for(world.run(2), timeout=20) == 2
    assert len(lost) == 2
    assert lost[1] == "learner was lost, and with it the state that it had staged"


async def test_a_learner_whose_answer_is_lost_is_rebuilt_so_that_no_step_is_trained_twice():
    world = Mortal(steps=6)
    lost: list[int] = []

    async def step(self: MortalLearner, lease: Lease) -> Any:
        answer = await MortalLearner.step(self, lease)
        if lease.step == 2 and not lost:
            lost.append(2)
            raise CallLostError("learner could not be reached")
        return answer

    world.learner.step = step.__get__(world.learner)  # type: ignore[method-assign]
    assert await asyncio.wait_for(world.run(6), timeout=20) == 6
    again = [fields for name, fields in world.witness.events if name == "learner_trained_again"]
    assert [(fields["steps"], fields["same_weights"]) for fields in again] == [(2, True)]
    assert sorted(o for batch in world.learner.trained for o in batch) == list(range(24))


async def test_weights_lost_with_the_learners_machine_are_published_after_a_new_learner_recomputed_them():
    world = Mortal(steps=6, rollouts=1)
    lost: list[int] = []

    async def load_weights(self: MortalRollout, weights: Weights) -> Any:
        if weights.version == 3 and not lost:
            lost.append(3)
            world.learner.process.alive = False
            raise PayloadLostError("the node of the learner is gone")
        return await MortalRollout.load_weights(self, weights)

    world.engines[0].load_weights = load_weights.__get__(world.engines[0])  # type: ignore[method-assign]
    world.lanes.learner.on_weights = world.lanes.publication.renew  # type: ignore[attr-defined]
    assert await asyncio.wait_for(world.run(6), timeout=20) == 6
    assert lost == [3]
    assert world.witness.versions == [1, 2, 3, 4, 5, 6]


async def test_a_batch_whose_payload_is_gone_is_generated_again_and_trained_once():
    gone: set[int] = {1, 2}

    class Learner(FakeLearner):
        async def step(self, lease: Lease) -> tuple[StepReport, Weights, Any]:
            if any(group.ordinal in gone and group.attempt == 0 for group, _ in lease.payloads):
                raise PayloadLostError("the node is gone")
            return await super().step(lease)

    async def is_there(group: Any) -> bool:
        return not (group.ordinal in gone and group.attempt == 0)

    learner = Learner()
    lanes, witness = make_lanes(steps=5, learner=learner)
    lanes = replace(lanes, is_there=is_there)
    assert await asyncio.wait_for(run_loop(lanes, steps=5, min_valid=2, stop=asyncio.Event()), timeout=20) == 5
    assert sorted(o for batch in learner.batches for o in batch) == list(range(20))
    assert {fields["ordinal"] for name, fields in witness.events if name == "group_lost"} == gone


async def test_groups_missing_from_a_truncated_stream_are_generated_again():
    class Forgetful(FakeRollout):
        async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Any]]:
            some = [item for item in work if item.grant.attempt or item.grant.ordinal % 3]
            async for item in super().generate(some):
                yield item

    learner = FakeLearner()
    lanes, witness = make_lanes(steps=5, rollout=[Forgetful()], learner=learner)
    assert await asyncio.wait_for(run_loop(lanes, steps=5, min_valid=2, stop=asyncio.Event()), timeout=20) == 5
    assert sorted(o for batch in learner.batches for o in batch) == list(range(20))
    assert {fields["ordinal"] for name, fields in witness.events if name == "group_lost"} == set(range(0, 20, 3))


async def test_a_group_that_kills_every_engine_is_dropped_with_its_reason_and_the_run_continues():
    world = Mortal(steps=5)
    poisoned = 3

    async def generate(self: MortalRollout, work: Sequence[Assignment]) -> AsyncIterator[Any]:
        if any(item.grant.ordinal == poisoned for item in work):
            self.process.alive = False
        async for item in MortalRollout.generate(self, work):
            yield item

    world.lanes.ledger._ledger.config = world.lanes.ledger._ledger.config.model_copy(  # type: ignore[attr-defined]
        update={"max_losses": 5, "max_dropped_share": 1.0}
    )
    for engine in world.engines:
        engine.groups_at_once = 1
        engine.generate = generate.__get__(engine)  # type: ignore[method-assign]
    for lane in world.lanes.rollout:
        lane.groups_at_once = 1
    assert await asyncio.wait_for(world.run(5), timeout=20) == 5
    drops = [fields for name, fields in world.witness.events if name == "group_dropped"]
    assert [fields["ordinal"] for fields in drops] == [poisoned]
    assert "lost 5 times, last: " in drops[0]["reason"]


def test_the_pause_between_replacements_is_bounded_however_many_there_were():
    restarts = Restarts(most=10_000, window_s=600, backoff_s=1, clock=lambda: 0.0)
    for _ in range(2_000):
        restarts.spend("rollout-0", WorkerLostError("gone"))
    assert restarts.pause_s() == LONGEST_PAUSE_S
