"""What a simulated run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Two runs of one scenario are equal. Seconds are simulated ones, except `compute_s`."""

    wall_s: float
    steps: int
    groups: int
    """Trained."""
    rollouts: int
    """Answers trained."""
    tokens: int
    """Of all answers generated, those of lost engines not counted."""
    busy: Mapping[str, float]
    """Share of the time in which a worker of the lane had work, mean of its workers (solon.telemetry.overlap)."""
    utilisation: Mapping[str, float]
    """Work done over the work that the lane does in this time at its highest rate."""
    efficiency: float
    """Overlap efficiency: the largest of `busy`."""
    binding_stage: str
    """The lane with the largest share: `generate`, `label`, `learn` or `none`."""
    publish_s: float
    """Mean seconds until a version was attested on every engine."""
    staleness: Mapping[int, int]
    """Groups trained, by staleness in steps."""
    violations: int
    """Groups trained beyond `max_staleness`: 0 unless the ledger is wrong."""
    lost: int
    """Groups admitted, and neither trained, nor dropped, nor held at the end: 0 unless the ledger is wrong."""
    twice: int
    """Groups trained or dropped more than once: 0 unless the ledger is wrong."""
    dropped: int
    faults: Mapping[str, int]
    """Faults and recoveries, by event."""
    accelerators: int
    cost_usd: float
    transitions: int
    """Changes of the ledger, as the driver of a real run makes them."""
    most_held: int
    """Groups that were neither trained nor dropped, at most."""
    most_held_bytes: int
    """Their payloads in the object store, at most."""
    events: int
    digest: str
    """Of every event with its time: equal for equal runs."""
    compute_s: float = field(compare=False)
    """Processor seconds that the simulation itself took."""

    @property
    def groups_per_s(self) -> float:
        """Trained groups per second."""
        return self.groups / self.wall_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.wall_s

    @property
    def transitions_per_s(self) -> float:
        """Ledger transitions per simulated second: the load of a real driver."""
        return self.transitions / self.wall_s

    @property
    def staleness_mean(self) -> float:
        """Mean over the trained groups, steps."""
        return sum(steps * count for steps, count in self.staleness.items()) / max(1, self.groups)

    @property
    def staleness_p50(self) -> int:
        """Median over the trained groups, steps."""
        seen = 0
        for steps in sorted(self.staleness):
            seen += self.staleness[steps]
            if 2 * seen >= self.groups:
                return steps
        return 0

    @property
    def staleness_max(self) -> int:
        """Largest of the trained groups, steps."""
        return max(self.staleness, default=0)

    @property
    def usd_per_million_tokens(self) -> float:
        """Cost over generated tokens."""
        return 1e6 * self.cost_usd / max(1, self.tokens)
