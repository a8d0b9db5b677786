"""The one clock of a run: wall time for records, and awake time for deadlines.

    clock = Clock()
    await clock.within(engine.load_weights(payload_ref), timeout_s=300)     # raises TimeoutError

Awake time is the time in which this process was running. A process that is stopped for a minute (Ctrl-Z, SIGSTOP, a
debugger, a suspended virtual machine) finds every deadline passed when it continues, and would blame workers that
answered in time. So the event loop ticks, and a late tick means that this process could not receive answers. That time
is not counted, and a wait that was interrupted by it starts again.

The time sources are arguments, so that a test can simulate hours in a second (tests/unit/virtual_time.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 1.0
LONGEST_S = 3.0
"""Most seconds that one interval between two ticks counts for. A busy loop is late by less."""
REMEMBERED = 4096
"""Number of absences whose times are kept."""


class Clock:
    """Shared by all parts of one run, within one event loop."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        *,
        ticks: bool = True,
    ) -> None:
        """monotonic: seconds from an arbitrary start, including time in which the process is stopped. wall: seconds
        since 1970. ticks: False for simulated time, which does not pass while the process is stopped."""
        self.monotonic = monotonic
        self.wall = wall
        self._ticks = ticks
        self._counted = 0.0
        self._last = monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._returned = float("-inf")
        self._absences = 0
        self._away: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self.away_s = 0.0
        """Total seconds that were not counted."""

    def now(self) -> float:
        """Awake seconds from an arbitrary start. Call it within the event loop."""
        self._look()
        return self._counted

    @property
    def absences(self) -> int:
        """Number of absences of the process so far."""
        self._look()
        return self._absences

    def since_return(self) -> float:
        """Awake seconds since the last absence; infinite if there was none."""
        return self.now() - self._returned

    def charged(self, standing_s: float) -> float:
        """The part of a worker's time without progress that counts against the worker. An event that stopped this
        process may have stopped the worker too, so time is counted from the last return; but at least half of all awake
        time counts, since this process may be stopped repeatedly."""
        since = self.since_return()
        begun = self._last - standing_s
        away_s = sum(min(length, back - begun) for back, length in self._away if back > begun)
        return min(standing_s, max(since, min(self._counted, standing_s - away_s) / 2))

    async def wait(self, futures: Collection[asyncio.Future[Any]], *, timeout_s: float | None) -> None:
        """Returns when one of the futures is done, or after `timeout_s` awake seconds. After an absence the seconds are
        counted from the return, up to twice as many in total."""
        if timeout_s is None:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            return
        begun = self.now()
        limit = begun + timeout_s
        latest = limit + timeout_s + 2 * LONGEST_S  # answers that arrived during the last absence are still received
        while True:
            absences, left = self.absences, limit - self.now()
            done, _ = await asyncio.wait(futures, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if done or self.absences == absences:
                return
            limit = max(limit, min(self._returned + timeout_s, latest))
            if self.now() >= limit:
                return

    async def within(self, work: Awaitable[T], timeout_s: float) -> T:
        """The result of the work. Raises TimeoutError and cancels it after `timeout_s` awake seconds."""
        task = asyncio.ensure_future(work)
        try:
            await self.wait({task}, timeout_s=timeout_s)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        await asyncio.wait({task})
        raise TimeoutError

    def _look(self) -> None:
        """Count the time since the last look and schedule the next one."""
        now = self.monotonic()
        if not self._ticks:
            self._counted, self._last = self._counted + now - self._last, now
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # no loop watched the time in between
            self._loop, self._last = loop, now
            loop.call_later(TICK_S, self._tick, loop)
        passed, self._last = now - self._last, now
        self._counted += min(passed, LONGEST_S)
        if passed > LONGEST_S:
            self._absences += 1
            self.away_s += passed - LONGEST_S
            self._away.append((now, passed - LONGEST_S))
            self._returned = self._counted

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._look()
            loop.call_later(TICK_S, self._tick, loop)
