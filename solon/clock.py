"""Time in which this process was running: deadlines must not pass while it was stopped itself.

    awake = Awake()
    await awake.within(engine.load_weights(box), timeout_s=300)     # raises TimeoutError

A process that is stopped for a minute (Ctrl-Z, SIGSTOP, a debugger, a suspended virtual machine) finds every deadline
passed when it continues, and would blame workers that answered in time. So the event loop is asked to tick; a tick that
comes late means that nobody here could listen. That time is not counted, and a wait that it fell into begins again.
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
"""Seconds between two ticks that count at most. A busy loop is late by less."""
REMEMBERED = 4096
"""Absences of which it is known when they were."""


class Awake:
    """A clock that stands still while the process does. All waits of one run share one, within one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted = 0.0
        self._last = clock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._returned = float("-inf")
        self._absences = 0
        self._away: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self.away_s = 0.0
        """Seconds in all that were not counted."""

    def now(self) -> float:
        """Seconds for which the process was running, from an arbitrary beginning. Call it within the event loop."""
        self._look()
        return self._counted

    @property
    def absences(self) -> int:
        """How often the process was away so far."""
        self._look()
        return self._absences

    def since_return(self) -> float:
        """Seconds since it was away last; infinite when it never was."""
        return self.now() - self._returned

    def charged(self, standing_s: float) -> float:
        """Of the seconds for which a worker has stood still, those to blame it for. Whoever stopped this process may
        have stopped the worker too, so they are counted from the last return; but half of all that this process was
        running for at least, since it may be stopped again and again."""
        since = self.since_return()
        begun = self._last - standing_s
        away_s = sum(min(length, back - begun) for back, length in self._away if back > begun)
        return min(standing_s, max(since, min(self._counted, standing_s - away_s) / 2))

    async def wait(self, futures: Collection[asyncio.Future[Any]], *, timeout_s: float | None) -> None:
        """Returns when one of them is done, or none was for so many seconds in which this process was running: so many
        since it was away last, and no more than twice as many in all."""
        if timeout_s is None:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            return
        begun = self.now()
        limit = begun + timeout_s
        latest = limit + timeout_s + 2 * LONGEST_S  # what came during the last absence is still received
        while True:
            absences, left = self.absences, limit - self.now()
            done, _ = await asyncio.wait(futures, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if done or self.absences == absences:
                return
            limit = max(limit, min(self._returned + timeout_s, latest))
            if self.now() >= limit:
                return

    async def within(self, work: Awaitable[T], timeout_s: float) -> T:
        """Its result. Raises TimeoutError when it takes longer; it is cancelled then."""
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
        """Count the time since the last look, and see that somebody looks again soon."""
        loop = asyncio.get_running_loop()
        now = self._clock()
        if loop is not self._loop:  # nothing was watched between two loops
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
