"""An event loop whose time passes only while all tasks wait: hours of a run in a second.

outcome = run_virtual(lambda clock: run_loop(make_lanes(clock=clock), ...))
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from solon.clock import Clock

T = TypeVar("T")

EPOCH = 1_700_000_000.0
"""Wall time at the beginning."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where another loop would sleep until the next timer, this one sets its time to it. No input or output."""

    def __init__(self) -> None:
        self._now = 0.0
        selector = selectors.SelectSelector()
        self._select, selector.select = selector.select, self._advance  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def _advance(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("all tasks wait, and no timer is set: they would wait for ever")
        self._now += max(0.0, timeout)
        return self._select(0)


def run_virtual(main: Callable[[Clock], Awaitable[T]]) -> tuple[T, float, set[str]]:
    """The result of `main(clock)`, the virtual seconds that it took, and the names of the tasks that it left behind."""

    async def inside() -> tuple[T, float, set[str]]:
        loop = asyncio.get_running_loop()
        result = await main(Clock(loop.time, lambda: EPOCH + loop.time(), ticks=False))
        for _ in range(3):  # until cancelled tasks have ended
            await asyncio.sleep(0)
        return result, loop.time(), {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(inside())
