"""How well the lanes overlap: busy shares, the bound, and which stage binds. Pure arithmetic on spans.

With busy times Tg, Tj, Tt of the three lanes, a run cannot take less than max(Tg, Tj, Tt): the slowest lane. So
efficiency = max(...) / wall time, and the lane with the largest busy time is the one that binds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from solon.records import Span

LANES = ("generate", "label", "learn")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Shares are of wall time, 0..1; several workers of a lane count as one: their mean, weighted by their presence."""

    wall_s: float
    busy: Mapping[str, float]
    efficiency: float
    binding_stage: str

    @property
    def speedup_bound(self) -> float:
        """How much faster than one stage after the other perfect overlap could be at these busy times."""
        longest = max(self.busy.values(), default=0.0)
        return sum(self.busy.values()) / longest if longest else 1.0


class Busy:
    """Adds up how long each worker was busy, overlapping spans once, in constant memory.

    Spans of one worker must come in the order of their starts, which is how a worker makes them.
    """

    def __init__(self) -> None:
        self._total_s: dict[tuple[str, str], float] = defaultdict(float)
        self._reach_s: dict[tuple[str, str], float] = {}
        self._joined_s: dict[str, float] = {}
        self._left_s: dict[str, float] = {}

    def joined(self, worker: str, wall_s: float) -> None:
        """The worker was not there before this wall time."""
        self._joined_s[worker] = wall_s

    def left(self, worker: str, wall_s: float) -> None:
        """The worker is not there after this wall time."""
        self._left_s[worker] = wall_s

    def presence(self) -> list[dict[str, float]]:
        """When workers joined and left, for JSON."""
        return [dict(self._joined_s), dict(self._left_s)]

    def add_presence(self, presence: Sequence[Mapping[str, float]]) -> None:
        """Add what another process had noted."""
        for known, noted in zip((self._joined_s, self._left_s), presence, strict=True):
            known.update(noted)

    def add(self, span: Span) -> None:
        """Count the time of a span."""
        key, start_s, end_s = (span.lane, span.worker), span.start_s, span.end_s
        reach_s = self._reach_s.get(key, start_s)
        if reach_s > start_s:
            start_s = reach_s
        self._total_s[key] += end_s - start_s if end_s > start_s else 0.0
        if end_s >= reach_s:
            self._reach_s[key] = end_s

    def seconds(self, lane: str) -> float:
        """Busy seconds of a lane's workers together."""
        return sum(seconds for (name, _), seconds in self._total_s.items() if name == lane)

    def totals(self) -> list[list[Any]]:
        """[lane, worker, seconds] of each worker, for JSON."""
        return [[lane, worker, seconds] for (lane, worker), seconds in self._total_s.items()]

    def add_totals(self, totals: Iterable[Sequence[Any]]) -> None:
        """Add what another process had counted."""
        for lane, worker, seconds in totals:
            self._total_s[lane, worker] += seconds

    def overlap(self, *, wall_s: float) -> Overlap:
        """Shares of a wall time that the spans lie in. A worker that joined or left counts for the time that it was
        there."""
        busy_s: dict[str, float] = defaultdict(float)
        present_s: dict[str, float] = defaultdict(float)
        for (lane, worker), total_s in self._total_s.items():
            present = max(self._left_s.get(worker, wall_s) - self._joined_s.get(worker, 0.0), 1e-9)
            busy_s[lane] += min(total_s, present)
            present_s[lane] += present
        busy = {lane: busy_s[lane] / present_s[lane] if present_s[lane] else 0.0 for lane in LANES}
        binding = max(busy, key=lambda lane: busy[lane])
        return Overlap(wall_s, busy, busy[binding], binding if busy[binding] else "none")


def measure(spans: Iterable[Span], *, start_s: float, end_s: float) -> Overlap:
    """Overlap between two moments; spans are clipped to them."""
    busy = Busy()
    inside = [s for s in spans if s.end_s > start_s and s.start_s < end_s]
    for span in sorted(inside, key=lambda s: s.start_s):
        busy.add(replace(span, start_s=max(span.start_s, start_s), end_s=min(span.end_s, end_s)))
    return busy.overlap(wall_s=end_s - start_s)
