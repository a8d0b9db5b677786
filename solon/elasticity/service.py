"""How long a lane takes for a group, and what that says about the throughput of n lanes. Pure arithmetic.

Little's law, L = rate * W: a lane that holds o groups for W seconds each finishes o / W groups a second. W depends on
o. An engine that decodes in batches takes about as long for one group as for many (W = a); a judge that computes one
group after the other takes o times as long (W = b * o). Real ones lie between: W(o) = a + b * o. Both are fitted
to what lanes did at different occupancies, so that n lanes can be compared before they exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from solon.pipeline.usage import Usage

MIX = 0.3
"""Weight of a new measurement against the earlier ones at the same occupancy."""
BIN = 1.3
"""Occupancies within this ratio are the same."""
TOLERANCE = 2.0
"""Two measurements agree within this ratio: a window may lie across a change."""
FEWEST = 2.0
"""Groups that a measurement must rest on."""


@dataclass(frozen=True, slots=True)
class Service:
    """W(o) = base_s + each_s * o seconds for a group, at o groups in the lane."""

    base_s: float
    each_s: float

    def rate(self, lanes: int, *, places: float, in_flight: float = math.inf) -> float:
        """Groups a second that this many lanes finish.

        places: groups that one lane works on together. in_flight: groups that all lanes may hold together.
        """
        if lanes < 1:
            return 0.0
        held = max(1.0, min(lanes * places, in_flight))
        return held / max(self.base_s + self.each_s * held / lanes, 1e-9)


@dataclass(slots=True)
class _Bin:
    occupancy: float
    seconds: float
    """For a group."""


@dataclass(slots=True)
class ServiceFit:
    """`fit.add(usage of a window); fit.service`. Remembers every occupancy that it has seen.

    When groups become longer, they do so at every occupancy: the change seen at one is applied to all. The newest
    measurement is believed: what no line through it can have been is forgotten.
    """

    places: float
    """Groups that one lane works on together; it queues more."""
    _bins: dict[int, _Bin] = field(default_factory=dict)
    _pending: Usage = field(default_factory=Usage)

    def add(self, window: Usage) -> None:
        """Add what a lane did in a window. Windows with few groups are put together."""
        both = self._pending + window
        if both.finished < FEWEST or both.busy_s <= 0:
            self._pending = both
            return
        self._pending = Usage()
        occupancy, seconds = max(1.0, both.held_s / both.busy_s), both.held_s / both.finished
        if occupancy > self.places:  # waiting in the lane is no work: the same rate at full places
            occupancy, seconds = self.places, seconds * self.places / occupancy
        number = round(math.log(occupancy) / math.log(BIN))
        known = self._bins.get(number)
        if known is None:
            known = self._bins[number] = _Bin(occupancy, seconds)
        else:
            mixed = known.seconds + MIX * (seconds - known.seconds)
            known.occupancy += MIX * (occupancy - known.occupancy)
            ratio = mixed / known.seconds
            for other in self._bins.values():
                other.seconds *= ratio
        self._bins = {number: other for number, other in self._bins.items() if _can_be_on_a_line(known, other)}

    @property
    def service(self) -> Service | None:
        """The fitted times; None: nothing was finished yet. Seen at one occupancy only, the time counts as independent
        of the occupancy; a pool that shrank on that ground has then seen another one."""
        return fitted([(one.occupancy, one.seconds) for one in self._bins.values()])


def _can_be_on_a_line(one: _Bin, other: _Bin) -> bool:
    """Neither part of W(o) is below 0, so a point bounds all others, up to noise."""
    least, most = sorted((one.seconds, one.seconds * other.occupancy / one.occupancy))
    return least / TOLERANCE <= other.seconds <= most * TOLERANCE


def fitted(points: Sequence[tuple[float, float]]) -> Service | None:
    """The line through (occupancy, seconds) with the least squares, neither part below 0."""
    if not points:
        return None
    mean_o = sum(o for o, _ in points) / len(points)
    mean_s = sum(s for _, s in points) / len(points)
    spread = sum((o - mean_o) ** 2 for o, _ in points)
    slope = sum((o - mean_o) * (s - mean_s) for o, s in points) / spread if spread else 0.0
    slope = max(0.0, slope)
    base = mean_s - slope * mean_o
    if base < 0:  # the line through the origin
        return Service(0.0, sum(o * s for o, s in points) / sum(o * o for o, _ in points))
    return Service(base, slope)
