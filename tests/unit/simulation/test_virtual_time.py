"""Time passes only while all tasks wait, and timers that are moved ring once, in the order of their times."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.simulation.virtual_time import run_virtual, running_loop


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=12))
def test_a_postponed_timer_rings_once_at_its_last_time_and_a_cancelled_one_never(timers):
    rung: list[tuple[float, int]] = []

    async def main(_: object) -> None:
        loop = running_loop()
        handles = [
            loop.call_at(first, lambda n=n: rung.append((loop.time(), n))) for n, (first, _, _) in enumerate(timers)
        ]
        for handle, (first, more, is_cancelled) in zip(handles, timers, strict=True):
            handle.postpone(first + more)
            if is_cancelled:
                handle.cancel()
        await asyncio.sleep(30)

    run_virtual(main)
    expected = {(first + more, n) for n, (first, more, is_cancelled) in enumerate(timers) if not is_cancelled}
    assert set(rung) == expected
    assert len(rung) == len(expected)
    assert [time for time, _ in rung] == sorted(time for time, _ in rung)


async def test_another_loop_is_refused_with_what_to_do():
    with pytest.raises(RuntimeError, match="call it within `run_virtual`"):
        running_loop()
