"""Work is dealt in one pass, and only those that get something are woken."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from solon.ledger.shares import Ask, deal, share
from solon.ledger.turns import Turns

ASKS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=8)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@given(available=st.integers(0, 60), asks=ASKS)
def test_dealing_to_all_is_fair_and_leaves_nothing_that_one_has_room_for(available, asks):
    parts = deal(available, asks)
    assert all(0 <= part <= room for part, (room, _) in zip(parts, asks, strict=True))
    assert sum(parts) == min(available, sum(room for room, _ in asks))
    for part, (_, held) in zip(parts, asks, strict=True):
        for other, (room, holds) in zip(parts, asks, strict=True):
            assert not (part and other < room and held + part > holds + other + 1)


@given(available=st.integers(0, 60), asks=ASKS)
def test_the_share_of_the_first_is_its_part_when_all_are_dealt_to(available, asks):
    (room, held), *others = asks
    assert share(available, room, held, others) == deal(available, asks)[0]


@given(held=st.lists(st.integers(0, 9), min_size=3, max_size=9), work=st.lists(st.integers(1, 3), max_size=6))
def test_in_small_portions_the_workers_with_the_fewest_groups_are_served_and_no_other_is_woken(held, work):
    async def main() -> None:
        holds, available = Counter({str(who): count for who, count in enumerate(held)}), 0
        turns = Turns(lambda: available, holds)
        waiting = {str(who): asyncio.ensure_future(turns.part(Ask(str(who), 1))) for who in range(len(held))}
        await settled()
        for portion in work:
            expected = min(portion, len(waiting))
            least = sorted(holds[who] for who in waiting)[:expected]
            available = portion
            turns.deal()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            available = 0
            await settled()
            served = [who for who, task in waiting.items() if task.done()]
            assert sorted(holds[who] for who in served) == least
            for who in served:
                assert waiting.pop(who).result() == 1
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)

    asyncio.run(main())


async def test_a_worker_that_finished_a_group_while_it_waited_is_served_first():
    holds, available = Counter(a=2, b=3), 0
    turns = Turns(lambda: available, holds)
    tasks = {who: asyncio.ensure_future(turns.part(Ask(who, 4))) for who in "ab"}
    for who in "cdef":  # enough others that one group is a small portion
        holds[who] = 9
        tasks[who] = asyncio.ensure_future(turns.part(Ask(who, 4)))
    await settled()
    holds["b"] = 1
    turns.returned("b")
    available = 1
    turns.deal()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    available = 0  # taken
    await settled()
    assert [who for who, task in tasks.items() if task.done()] == ["b"]
    for task in tasks.values():
        task.cancel()


async def test_a_worker_that_is_down_is_woken_in_place_of_being_served():
    turns = Turns(lambda: 1, Counter())
    down = asyncio.ensure_future(turns.part(Ask("down", 1, lambda: False)))
    up = [asyncio.ensure_future(turns.part(Ask(f"up-{n}", 1))) for n in range(4)]
    await settled()
    assert down.result() == 0
    assert [task.done() for task in up].count(True) >= 1
    for task in up:
        task.cancel()


async def test_what_a_cancelled_worker_leaves_goes_to_the_next():
    turns = Turns(lambda: 1, Counter())
    first, second = (asyncio.ensure_future(turns.part(Ask(who, 1))) for who in "ab")
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # one of them has its part and has not taken it
    first.cancel()
    await settled()
    assert first.cancelled()
    assert second.result() == 1
