"""How much may wait: requests beyond it are refused at once, with the time after which there will be room."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST_S, LONGEST_S = 1, 60


class BusyError(Exception):
    """There is no room. `retry_after_s`: whole seconds until there probably is."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many items wait already, expected fewer; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Admission:
    """`with admission.room_for(8): ...`; most: items that may wait together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.waiting = 0
        self._rate = 0.0
        """Items a second, smoothed."""

    @contextmanager
    def room_for(self, items: int) -> Iterator[None]:
        """Count items as waiting. Raises BusyError. A request that is larger than everything that may wait is let in
        when nothing waits."""
        if self.waiting and self.waiting + items > self._most:
            raise BusyError(self._wait_s(items))
        self.waiting += items
        began = time.monotonic()
        try:
            yield
            self._finished(items, time.monotonic() - began)
        finally:
            self.waiting -= items

    def _finished(self, items: int, seconds: float) -> None:
        # Little's law: what waits now over how long this waited.
        rate = self.waiting / max(seconds, 1e-3)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def _wait_s(self, items: int) -> int:
        beyond = self.waiting + items - self._most
        seconds = beyond / self._rate if self._rate else SHORTEST_S
        return max(SHORTEST_S, min(LONGEST_S, math.ceil(seconds)))
