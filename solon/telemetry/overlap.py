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
    """Shares are of wall time, 0..1; several workers of a lane count as one (their mean)."""

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

    def add(self, span: Span) -> None:
        """Count the time of a span."""
        key = (span.lane, span.worker)
        start_s = max(span.start_s, self._reach_s.get(key, span.start_s))
        self._total_s[key] += max(0.0, span.end_s - start_s)
        self._reach_s[key] = max(span.end_s, self._reach_s.get(key, span.end_s))

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
        """Shares of a wall time that the spans lie in."""
        shares: dict[str, list[float]] = defaultdict(list)
        for (lane, _), total_s in self._total_s.items():
            shares[lane].append(min(1.0, total_s / max(wall_s, 1e-9)))
        busy = {lane: sum(shares[lane]) / len(shares[lane]) if shares[lane] else 0.0 for lane in LANES}
        binding = max(busy, key=lambda lane: busy[lane])
        return Overlap(wall_s, busy, busy[binding], binding if busy[binding] else "none")


def measure(spans: Iterable[Span], *, start_s: float, end_s: float) -> Overlap:
    """Overlap between two moments; spans are clipped to them."""
    busy = Busy()
    inside = [s for s in spans if s.end_s > start_s and s.start_s < end_s]
    for span in sorted(inside, key=lambda s: s.start_s):
        busy.add(replace(span, start_s=max(span.start_s, start_s), end_s=min(span.end_s, end_s)))
    return busy.overlap(wall_s=end_s - start_s)
