"""A process that was stopped itself blames nobody for the time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from solon import awake as module
from solon.async_ledger import AsyncLedger
from solon.awake import LONGEST_S, Awake
from solon.errors import WorkerLostError
from solon.ledger import LedgerConfig
from solon.recovery import Guard
from solon.staleness import StalenessConfig
from solon.weights import Publication, PublishConfig
from tests.unit.fakes import FakeRollout, make_weights
from tests.unit.test_recovery import QUICK, Process


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of hundredths of a second, so that a pause of a tenth is long."""
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_S", 0.05)


def pause(seconds: float) -> None:
    """What SIGSTOP does to a process, seen from within: no code runs, and the clocks do."""
    time.sleep(seconds)


async def test_the_clock_stands_still_while_the_process_does(quick: None):
    awake = Awake()
    before = awake.now()
    await asyncio.sleep(0.03)
    assert 0.02 < awake.now() - before < 0.2
    assert awake.absences == 0
    before = awake.now()
    pause(0.3)
    assert awake.now() - before < 0.1
    assert awake.absences == 1
    assert 0.2 < awake.away_s < 0.4


async def test_a_wait_that_the_process_slept_through_begins_again(quick: None):
    awake = Awake()
    awake.now()
    answer = asyncio.get_running_loop().create_future()

    async def arrives_after_the_pause() -> None:
        pause(0.3)
        await asyncio.sleep(0.05)
        answer.set_result("answer")

    arriving = asyncio.ensure_future(arrives_after_the_pause())
    assert await awake.within(asyncio.shield(answer), 0.1) == "answer"
    await arriving


async def test_a_wait_without_a_pause_ends_in_time_and_cancels_its_work():
    awake, cancelled = Awake(), asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await awake.within(never(), 0.05)
    assert time.monotonic() - began < LONGEST_S
    assert cancelled.is_set()


async def test_a_pause_of_the_driver_is_not_blamed_on_a_worker_that_answers(quick: None):
    events: list[str] = []
    process = Process()

    async def slow_beat() -> float:
        await asyncio.sleep(0.03)
        return 0.0

    process.beat = slow_beat  # type: ignore[method-assign]
    guard = Guard(process, QUICK, tell=lambda name, **fields: events.append(name))
    guard.start()
    await asyncio.sleep(0.02)  # the beat is asked for, and not answered yet
    for _ in range(3):
        pause(0.2)
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert events == []
    assert process.starts == 0
    process.beat = asyncio.Event().wait  # type: ignore[method-assign, assignment]
    await asyncio.sleep(0.15)
    assert events[0] == "worker_lost"  # and one that does not answer is found all the same
    await guard.close()


async def test_what_a_worker_counts_as_standing_still_begins_when_the_driver_is_back(quick: None):
    events: list[str] = []
    process = Process(stalled_s=3600.0)
    awake = Awake()
    awake.now()
    pause(0.2)
    guard = Guard(process, QUICK, tell=lambda name, **fields: events.append(name), awake=awake)
    guard.start()
    await asyncio.sleep(0.1)
    assert events == []
    await guard.close()


async def test_a_lease_does_not_run_out_while_the_driver_is_stopped(quick: None):
    awake, told = Awake(), []
    ledger = AsyncLedger(LedgerConfig(lease_s=0.15), StalenessConfig(), total_groups=16, clock=awake.now)
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
