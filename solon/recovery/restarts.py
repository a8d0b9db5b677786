"""How often a worker may be replaced and how long to pause before each replacement. Pure, except for the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

LONGEST_PAUSE_S = 60.0


class SpentError(Exception):
    """No restarts are left. The message says why."""


class Lately:
    """Counts events within the last `window_s` seconds."""

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()

    def note(self) -> None:
        self._times.append(self._clock())

    def count(self) -> int:
        while self._times and self._times[0] <= self._clock() - self._window_s:
            self._times.popleft()
        return len(self._times)


class Restarts:
    """The replacements of one worker.

    One number bounds the replacements within a window and those in a row without an answer in between, each up for less
    than a window. The second bound catches a worker that takes longer than the window to start and fails at its first
    work.
    """

    def __init__(
        self, *, most: int, window_s: float, backoff_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._window_s = window_s
        self._backoff_s = backoff_s
        self._lately = Lately(window_s, clock)
        self._clock = clock
        self._in_a_row = 0
        self._up_at = clock()

    def up(self) -> None:
        """A replacement is ready to work."""
        self._up_at = self._clock()

    def lost(self) -> None:
        """The worker that was up is lost. A worker that was up for a whole window did not fail at its first work."""
        if self._clock() - self._up_at >= self._window_s:
            self._in_a_row = 0

    def answered(self) -> None:
        """The worker did something useful."""
        self._in_a_row = 0

    def spend(self, name: str, cause: Exception) -> None:
        """Count one more replacement. Raises SpentError when there were too many."""
        allows = f"more than recovery.max_restarts = {self._most} allows; last cause: {cause}"
        if (count := self._lately.count()) >= self._most:
            raise SpentError(
                f"{name} was replaced {count} times within {self._window_s:.0f} s and was lost again, {allows}"
            )
        if self._in_a_row >= self._most:
            raise SpentError(
                f"{name} was replaced {self._in_a_row} times in a row without an answer in between and was lost "
                f"again, {allows}"
            )
        self._lately.note()
        self._in_a_row += 1

    def pause_s(self) -> float:
        """Pause before the next replacement: none before the first within the window, then doubling."""
        repeats = self._lately.count() - 1
        return min(LONGEST_PAUSE_S, self._backoff_s * 2.0 ** min(repeats - 1, 60)) if repeats > 0 else 0.0
