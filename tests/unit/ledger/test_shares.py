"""Engines and judges that ask together share the available work."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import WorkerLostError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import Ledger, LedgerConfig
from solon.ledger.shares import Ask, share
from solon.ledger.staleness import StalenessConfig
from solon.protocols import Assignment, GenerationReport
from tests.unit.fakes import FakeJudge, FakeRollout, make_lanes
from tests.unit.test_loop import run

ON_POLICY = StalenessConfig(target_staleness=0, max_staleness=0)


def make_async(batch: int, *, total: int | None = None, staleness: StalenessConfig = ON_POLICY) -> AsyncLedger:
    return AsyncLedger(LedgerConfig(batch_groups=batch), staleness, total_groups=total)


async def before_checkout() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@given(
    available=st.integers(0, 40),
    asks=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_in_any_order_of_requests_all_work_is_taken_and_evenly_shared(available, asks, order):
    waiting = dict(enumerate(asks))
    left, holds = available, {who: held for who, (_, held) in waiting.items()}
    turns = list(waiting)
    order.shuffle(turns)
    for who in turns:
        room, held = waiting.pop(who)
        mine = share(left, room, held, list(waiting.values()))
        assert 0 <= mine <= min(room, left)
        holds[who] += mine
        left -= mine
    assert left == max(0, available - sum(room for room, _ in asks))  # no credit is lost
    gained = [who for who, (_, held) in enumerate(asks) if holds[who] > held]
    hungry = [who for who, (room, held) in enumerate(asks) if holds[who] < held + room]
    assert all(holds[who] <= holds[other] + 1 for who in gained for other in hungry)


@given(available=st.integers(1, 100), workers=st.integers(1, 9))
def test_an_idle_worker_gets_at_most_its_share_rounded_up(available, workers):
    assert share(available, 100, 0, [(100, 0)] * (workers - 1)) == -(-available // workers)


async def test_four_idle_engines_share_a_batch_of_32_as_8_each_from_the_first_moment_on():
    ledger = make_async(32)
    grants = await asyncio.gather(*(ledger.reserve(64, holder=f"rollout-{i}") for i in range(4)))
    assert [len(granted) for granted in grants] == [8, 8, 8, 8]
    assert sorted(grant.ordinal for granted in grants for grant in granted) == list(range(32))


async def test_a_run_keeps_all_its_engines_and_judges_busy():
    engines = [FakeRollout(name=f"rollout-{i}", delay_s=0.001) for i in range(4)]
    judges = [FakeJudge(name=f"judge-{i}") for i in range(3)]
    lanes, witness = make_lanes(batch_groups=32, steps=4, staleness=ON_POLICY, rollout=engines, judges=judges)
    assert await run(lanes, steps=4) == 4
    assert [len(engine.started) for engine in engines] == [32, 32, 32, 32]
    assert Counter(version for engine in engines for _, version in engine.started) == dict.fromkeys(range(4), 32)
    assert len(witness.generated_ordinals) == 128


async def test_an_engine_without_room_leaves_its_share_to_the_others():
    ledger = make_async(32)
    small, *large = await asyncio.gather(
        ledger.reserve(2, holder="small"), *(ledger.reserve(64, holder=f"large-{i}") for i in range(2))
    )
    assert [len(small), *map(len, large)] == [2, 15, 15]


async def test_a_single_engine_takes_all_work_that_it_has_room_for():
    ledger = make_async(32)
    assert len(await ledger.reserve(64, holder="only")) == 32


async def test_an_engine_that_joins_late_gets_the_next_work_first():
    ledger = make_async(4, staleness=StalenessConfig(target_staleness=1, max_staleness=2))
    early = [await ledger.reserve(8, holder="early")]
    assert len(early[0]) == 8
    both = [asyncio.ensure_future(ledger.reserve(8, holder=name)) for name in ("early", "late")]
    await before_checkout()
    await ledger.requeue({0: 0, 1: 0}, "chance")
    await before_checkout()
    assert not both[0].done()
    assert [grant.ordinal for grant in both[1].result()] == [0, 1]
    both[0].cancel()


async def test_the_share_of_an_engine_that_stops_waiting_goes_to_the_waiting_ones():
    ledger = make_async(8)
    first = await ledger.reserve(8, holder="busy")
    busy = asyncio.ensure_future(ledger.reserve(8, holder="busy"))
    idle = asyncio.ensure_future(ledger.reserve(8, holder="idle"))
    await before_checkout()
    await ledger.requeue({first[0].ordinal: 0}, "chance")
    idle.cancel()  # woken, and gone before it took its part
    await before_checkout()
    assert idle.cancelled()
    assert len(busy.result()) == 1


class GoesDown(FakeRollout):
    """Is lost with the first groups that it is given, and never up again."""

    @property
    def is_up(self) -> bool:
        return not self.started

    async def ready(self) -> bool:
        if self.started:
            await asyncio.Event().wait()
        return True

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Any]]:
        if not self.started:
            self.started += [(item.grant.ordinal, item.grant.version) for item in work]
            raise WorkerLostError("killed while it waited for credits")
        async for item in super().generate(work):
            yield item


async def test_credits_that_a_lost_engine_was_given_go_to_the_others():
    engines = [GoesDown(name="lost"), FakeRollout(name="up-0"), FakeRollout(name="up-1")]
    lanes, witness = make_lanes(batch_groups=9, steps=3, staleness=ON_POLICY, rollout=engines)
    assert await run(replace(lanes, grace_s=0.05), steps=2) == 2  # without it
    assert len(engines[0].started) == 3
    # Nine twice, in shares of five and four.
    assert sorted(len(engine.started) for engine in engines[1:]) in ([9, 9], [8, 10])
    assert [name for name, _ in witness.events].count("group_lost") == 3
    assert "group_dropped" not in [name for name, _ in witness.events]


async def test_judges_share_what_was_generated():
    ledger = make_async(12)
    grants = await ledger.reserve(12)
    judges = [asyncio.ensure_future(ledger.next_generated(12, holder=f"judge-{i}")) for i in range(3)]
    await before_checkout()
    for grant in grants:
        await ledger.commit_generation(grant.ordinal, 0, head=0, nbytes=1, payload="g")
    assert [len(work) for work in await asyncio.gather(*judges)] == [4, 4, 4]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 9), lanes=st.integers(1, 5), target=st.integers(0, 2))
async def test_lanes_that_come_and_go_lose_no_credit_and_none_starves(seed, batch, lanes, target):
    rng = random.Random(seed)
    steps = 6
    ledger = make_async(
        batch, total=batch * steps, staleness=StalenessConfig(target_staleness=target, max_staleness=target + 1)
    )
    served: Counter[str] = Counter()

    def is_up() -> bool:
        return rng.random() < 0.9

    async def engine(name: str) -> None:
        while (grants := await ledger.reserve(rng.randint(1, 2 * batch), holder=name, is_up=is_up)) != []:
            if grants is None:  # down while it waited
                await asyncio.sleep(0)
                continue
            served[name] += len(grants)
            for grant in grants:
                await asyncio.sleep(0)
                if rng.random() < 0.1:
                    await ledger.requeue({grant.ordinal: grant.attempt}, "lost")
                    continue
                await ledger.commit_generation(grant.ordinal, grant.attempt, head=grant.version, nbytes=1, payload="g")

    async def judge(name: str) -> None:
        while work := await ledger.next_generated(rng.randint(1, batch), holder=name):
            for item in work:
                await asyncio.sleep(0)
                await ledger.commit_labels(item.ordinal, item.attempt, nbytes=1, payload="f")

    async def flighty() -> None:
        while True:
            asking = asyncio.ensure_future(ledger.reserve(3, holder="flighty"))
            for _ in range(rng.randint(0, 9)):
                await asyncio.sleep(0)
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            elif not (grants := asking.result()):
                return
            else:
                await ledger.requeue({grant.ordinal: grant.attempt for grant in grants}, "down")
            await asyncio.sleep(0)

    tasks = [
        asyncio.ensure_future(work) for work in (*(engine(f"e{i}") for i in range(lanes)), judge("j0"), judge("j1"))
    ]
    tasks.append(asyncio.ensure_future(flighty()))
    async with asyncio.timeout(20):
        for step in range(steps):
            lease = await ledger.lease(step)
            assert lease is not None, await ledger.counts()
            assert await ledger.commit(step, lease.token)
            assert await ledger.publish(step + 1)
        await asyncio.gather(*tasks)
    counts = await ledger.counts()
    assert (counts["held"], counts["committed"]) == (0, batch * steps)
    assert counts["admitted"] == counts["committed"] + counts["dropped"]
    if batch >= lanes:  # each time that credits come there is at least one for every waiting lane
        assert served.keys() == {f"e{i}" for i in range(lanes)}


def test_the_held_work_of_a_lost_worker_is_forgotten():
    ledger = Ledger(LedgerConfig(batch_groups=4, lease_s=5), StalenessConfig())
    assert len(ledger.reserve(4, now=0, holder="a", others=[Ask("b", 4)])) == 4
    assert ledger.reserve(9, now=0, holder="a", others=[Ask("b", 4)]) == []  # b's, which holds none
    assert len(ledger.reserve(9, now=0, holder="b", others=[Ask("a", 9)])) == 4
    ledger.expire(now=5)
    assert len(ledger.reserve(9, now=5, holder="a", others=[Ask("b", 9)])) == 4


@pytest.mark.parametrize("waiting", [1, 64, 512])
def test_the_share_of_one_among_many_is_cheap_to_compute(waiting):
    assert share(4096, 64, 0, [(64, 0)] * (waiting - 1)) == min(64, -(-4096 // waiting))
