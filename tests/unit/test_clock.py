"""Time for which this process was stopped counts against no worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from solon import clock as module
from solon.clock import LONGEST_S, Clock
from solon.errors import WorkerLostError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.pipeline.publication import Publication, PublishConfig
from solon.recovery.guard import Guard
from tests.unit.fakes import FakeRollout, make_weights
from tests.unit.recovery.test_recovery import QUICK, Process


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of hundredths of a second, so that a pause of a tenth is long."""
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_S", 0.05)


def pause(seconds: float) -> None:
    """The effect of SIGSTOP on a process, seen from within: no code runs, and the clocks advance."""
    time.sleep(seconds)


async def test_the_clock_stands_still_while_the_process_does(quick: None):
    clock = Clock()
    before = clock.now()
    await asyncio.sleep(0.03)
    assert 0.02 < clock.now() - before < 0.2
    assert clock.absences == 0
    before = clock.now()
    pause(0.3)
    assert clock.now() - before < 0.1
    assert clock.absences == 1
    assert 0.2 < clock.away_s < 0.4


async def test_a_wait_interrupted_by_a_process_pause_restarts(quick: None):
    clock = Clock()
    clock.now()
    answer = asyncio.get_running_loop().create_future()

    async def arrives_after_the_pause() -> None:
        pause(0.3)
        await asyncio.sleep(0.05)
        answer.set_result("answer")

    arriving = asyncio.ensure_future(arrives_after_the_pause())
    assert await clock.within(asyncio.shield(answer), 0.1) == "answer"
    await arriving


class Stops:
    """A clock, and a process that is stopped again and again: `away` seconds in every `every`. No time passes here."""

    def __init__(self, *, away: float, every: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.every = away, every
        self.time = 0.0
        self._stops = every - away
        self.ran = 0.0
        monkeypatch.setattr(asyncio, "wait", self.wait)

    def monotonic(self) -> float:
        return self.time

    async def wait(self, futures: Any, *, timeout: float, **named: Any) -> Any:  # noqa: ASYNC109
        """The behaviour of asyncio.wait with ticks in between, when nothing is ever done."""
        assert self.ran < 10_000, "it never ends"
        end = self.time + timeout
        while True:
            step = min(module.TICK_S, end - self.time, self._stops - self.time)
            self.time, self.ran = self.time + step, self.ran + step
            if self.time >= self._stops:
                self.time += self.away
                self._stops += self.every
            if self.time >= end:
                return set(), set(futures)
            self.clock.now()

    clock: Clock


@pytest.mark.parametrize(("away", "every", "timeout_s"), [(6, 26, 30), (4, 5, 10), (3600, 3700, 300), (10, 30, 20)])
async def test_a_wait_in_a_repeatedly_paused_process_ends(
    away: float, every: float, timeout_s: float, monkeypatch: pytest.MonkeyPatch
):
    stops = Stops(away=away, every=every, monkeypatch=monkeypatch)
    stops.clock = clock = Clock(stops.monotonic)
    await clock.wait([asyncio.get_running_loop().create_future()], timeout_s=timeout_s)
    assert timeout_s <= clock.now() <= 2 * timeout_s + 3 * LONGEST_S
    assert stops.ran <= 2 * timeout_s + 2 * LONGEST_S


async def test_a_stuck_worker_is_detected_by_a_repeatedly_paused_process(
    monkeypatch: pytest.MonkeyPatch,
):
    stops = Stops(away=6, every=26, monkeypatch=monkeypatch)
    stops.clock = clock = Clock(stops.monotonic)
    clock.now()
    await stops.wait((), timeout=1000)
    assert clock.since_return() < 30
    assert 380 < clock.charged(1000) < 460  # half of the 770 s and of the time counted per absence
    assert clock.charged(5) == 5
    assert 10 < clock.charged(60) < 30


async def test_a_wait_without_a_pause_ends_in_time_and_cancels_its_work():
    clock, cancelled = Clock(), asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await clock.within(never(), 0.05)
    assert time.monotonic() - began < LONGEST_S
    assert cancelled.is_set()


async def test_a_pause_of_the_driver_is_not_blamed_on_a_worker_that_answers(quick: None):
    events: list[str] = []
    process = Process()

    async def slow_beat() -> float:
        await asyncio.sleep(0.03)
        return 0.0

    process.heartbeat = slow_beat  # type: ignore[method-assign]
    guard = Guard(process, QUICK, emit=lambda name, **fields: events.append(name))
    guard.start()
    await asyncio.sleep(0.02)  # the heartbeat is requested, and not answered yet
    for _ in range(3):
        pause(0.2)
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert events == []
    assert process.starts == 0
    process.heartbeat = asyncio.Event().wait  # type: ignore[method-assign, assignment]
    await asyncio.sleep(0.15)
    assert events[0] == "worker_lost"  # and one that does not answer is found all the same
    await guard.close()


async def test_a_workers_idle_time_counts_from_the_drivers_return(quick: None):
    events: list[str] = []
    process = Process(stalled_s=3600.0)
    clock = Clock()
    clock.now()
    pause(0.2)
    guard = Guard(process, QUICK, emit=lambda name, **fields: events.append(name), clock=clock)
    guard.start()
    await asyncio.sleep(0.1)
    assert events == []
    await guard.close()


async def test_a_lease_does_not_run_out_while_the_driver_is_stopped(quick: None):
    clock, told = Clock(), []
    ledger = AsyncLedger(LedgerConfig(lease_s=0.15), StalenessConfig(), total_groups=16, clock=clock)
    ledger.listen(lambda name, **fields: told.append(name))
    await ledger.reserve(1)
    pause(0.4)
    await asyncio.sleep(0.02)
    assert told == []
    await asyncio.sleep(0.4)
    assert "group_expired" in told


async def test_an_engine_that_takes_weights_while_the_driver_is_stopped_is_not_lost(quick: None):
    class Slow(FakeRollout):
        async def load_weights(self, weights: Any) -> Any:
            await asyncio.sleep(0.05)
            return await super().load_weights(weights)

        def lost(self, error: WorkerLostError, incarnation: int) -> None:
            lost.append(error)

    lost: list[WorkerLostError] = []
    engine = Slow()
    publication = Publication([engine], settings=PublishConfig(timeout_s=0.15), initial=make_weights(0))
    loading = asyncio.ensure_future(publication.verify(make_weights(0), make_weights(0)))
    await asyncio.sleep(0.01)
    pause(0.4)
    await asyncio.wait_for(loading, 5)
    assert lost == []
