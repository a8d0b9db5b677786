"""What a lane does over time: how many groups it holds, how long it is busy, how many it finishes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over time, so that the difference of two describes what happened in between."""

    held_s: float = 0.0
    """Groups that the lane held, summed over time: group seconds."""
    busy_s: float = 0.0
    """Seconds in which it held any."""
    finished: float = 0.0
    """Groups that it finished."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.held_s + other.held_s, self.busy_s + other.busy_s, self.finished + other.finished)

    def since(self, earlier: Usage) -> Usage:
        """What it did after `earlier`."""
        return Usage(self.held_s - earlier.held_s, self.busy_s - earlier.busy_s, self.finished - earlier.finished)


class UsageMeter:
    """`meter.hold(2, now); meter.hold(1, now, finished=1); meter.usage(now)`; `now` in seconds of one clock."""

    def __init__(self) -> None:
        self._held_s = self._busy_s = self._since = 0.0
        self._finished = self._held = 0

    def hold(self, held: int, now: float, *, finished: int = 0) -> None:
        """The lane holds this many groups from now on."""
        if self._held and now > self._since:
            self._held_s += self._held * (now - self._since)
            self._busy_s += now - self._since
        self._finished += finished
        self._held, self._since = held, now

    def usage(self, now: float) -> Usage:
        """The sums so far."""
        passed = max(0.0, now - self._since) if self._held else 0.0
        return Usage(self._held_s + self._held * passed, self._busy_s + passed, self._finished)
