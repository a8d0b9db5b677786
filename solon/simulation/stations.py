"""Time models: a worker whose speed depends on how much it holds.

A `Station` shares its rate equally among the items that it holds (processor sharing), as an engine does that decodes
all its answers at once. An item has a *work* (tokens of the longest answer of a group; 1 group for a judge) and a
*load* (the answers of a group that decode at once, on average over its time; 1 group for a judge). With the loads
adding up to c, every item advances by rate(c) / c a second, so the station as a whole works at exactly the rate of its
table.

    progress: what an item has done that entered at the beginning. An item that enters at progress p with work w is
    done at progress p + w, however often the speed changes meanwhile. So one heap and one timer are enough.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from solon.simulation.scenario import RateTable
from solon.simulation.virtual_time import VirtualHandle, VirtualLoop

TOGETHER_S = 1e-6
"""What would be done within this time is done: shorter ones are lost in the rounding of a clock of many days."""


class Rate:
    """A rate table: work per second of a worker by its concurrency."""

    def __init__(self, table: RateTable) -> None:
        self._concurrency = [concurrency for concurrency, _ in table]
        self._rate = [rate for _, rate in table]
        self.peak = max(self._rate)

    def __call__(self, concurrency: float) -> float:
        """Work per second.

        >>> rate = Rate(((2, 10), (4, 16)))
        >>> [rate(1), rate(2), rate(3), rate(9)]
        [5.0, 10, 13.0, 16]
        """
        known, rates = self._concurrency, self._rate
        after = bisect_left(known, concurrency)
        if after == len(known):
            return rates[-1]
        if known[after] == concurrency:
            return rates[after]
        if after == 0:
            return rates[0] * concurrency / known[0]
        share = (concurrency - known[after - 1]) / (known[after] - known[after - 1])
        return rates[after - 1] + share * (rates[after] - rates[after - 1])


class Station:
    """See the module. `on_done(items)` is called with the items that are done, in the order of their ends."""

    def __init__(self, rate: Rate, loop: VirtualLoop, on_done: Callable[[list[Any]], None]) -> None:
        self._rate = rate
        self._loop = loop
        self._on_done = on_done
        self._progress = 0.0
        self._seen_s = loop.now_s
        self._speed = 0.0
        self._load = 0.0
        self._paused = False
        self._held: list[tuple[float, int, float, Any]] = []  # (progress when done, age, load, item)
        self._age = 0
        self._timer: VirtualHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, item: Any, *, work: float, load: float, delay_s: float = 0.0) -> None:
        """Begin an item. delay_s: seconds before its work begins, at the speed that the station then has."""
        self._advance()
        self._load += load
        self._speed = speed = 0.0 if self._paused else self._rate(self._load) / self._load
        self._age += 1
        heapq.heappush(self._held, (self._progress + work + delay_s * speed, self._age, load, item))
        if speed:
            self._set_timer()

    def pause(self) -> None:
        """Nothing advances until `resume`."""
        self._advance()
        self._paused = True
        self._look()

    def resume(self) -> None:
        """See `pause`."""
        self._advance()
        self._paused = False
        self._look()

    def clear(self) -> None:
        """Everything that it holds is lost."""
        self._advance()
        self._held.clear()
        self._load = 0.0
        self._paused = False
        self._look()

    def _advance(self) -> None:
        now = self._loop.now_s
        self._progress += (now - self._seen_s) * self._speed
        self._seen_s = now

    def _look(self) -> None:
        """The speed at the present load, and the time of the next end."""
        if not self._held:
            # Nothing to compare with: begin again at zero, where rounding is finest.
            self._load = self._progress = self._speed = 0.0
            return
        self._speed = 0.0 if self._paused else self._rate(self._load) / self._load
        if self._speed:
            self._set_timer()

    def _set_timer(self) -> None:
        """At the next end. A timer that is set too early is postponed, which costs less than another one."""
        left = self._held[0][0] - self._progress
        end_s = self._seen_s + left / self._speed if left > 0 else self._seen_s
        timer = self._timer
        if timer is not None:
            if end_s >= timer.when_s:
                timer.postpone(end_s)
                return
            timer.cancel()
        self._timer = self._loop.call_at(end_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._advance()
        held, done = self._held, []
        reached = self._progress + 1e-9 * self._progress + TOGETHER_S * self._speed
        while held and held[0][0] <= reached:
            _, _, load, item = heapq.heappop(held)
            self._load -= load
            done.append(item)
        self._look()
        if done:
            self._on_done(done)
