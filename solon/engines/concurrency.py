"""How many requests an engine decodes together, adapted to the room in its key-value cache. Pure.

Too many requests fill the cache: the engine then preempts some and computes them again later, which costs more than
they gained. Too few leave the device idle. So the number grows by a little while requests wait and the cache has room,
and is cut by a share when requests were preempted or the cache is nearly full: additive increase and multiplicative
decrease, as in TCP (Chiu and Jain, 1989). It begins at its bound, so an engine whose cache is large enough is never
limited. A cut never ends a running request: fewer new ones are admitted.
"""

from __future__ import annotations

FULL = 0.97
"""Share of the cache in use at which the number is cut."""
ROOMY = 0.85
"""Share below which it may grow."""
CUT_PREEMPTED, CUT_FULL = 0.8, 0.9
GROWTH = 1 / 32
"""Of the bound, for each growth."""
REST = 16
"""Steps between two changes: the effect of the last one shows first."""


class Concurrency:
    """`places = concurrency.after_step(usage=0.7, preempted=0, running=40, waiting=12)`"""

    def __init__(self, most: int) -> None:
        """most: the bound, `max_running`."""
        self._most = most
        self._step = max(1, round(most * GROWTH))
        self._rest = 0
        self._preempted = 0
        self.places = most
        """Requests that may run together now."""

    def after_step(self, *, usage: float, preempted: int, running: int, waiting: int) -> int:
        """The number of places for the next step.

        usage: share of the cache in use, 0 to 1. preempted: requests preempted in the step. running, waiting: requests
        in the engine and in front of it.
        """
        self._rest = max(0, self._rest - 1)
        self._preempted += preempted
        if self._rest:
            return self.places
        before = self.places
        if self._preempted:
            self.places = max(1, int(min(self.places, running) * CUT_PREEMPTED))
        elif usage >= FULL and running > 1:
            self.places = max(1, int(min(self.places, running) * CUT_FULL))
        elif usage < ROOMY and waiting and running >= self.places:
            self.places = min(self._most, self.places + self._step)
        self._preempted = 0
        if self.places != before:
            self._rest = REST
        return self.places
