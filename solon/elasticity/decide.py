"""Decides how many lanes each pool should have: a pure function of measurements, limits and what was decided before.

    decision = decide(load, limits, past)
    decision.sizes["rollout"]      # Size(size=3, reason="2 of rollout make 1.1 groups/s, 1.9 are needed: 3")

Three lanes are in balance when they pass on groups at the same rate: t_generate / n_generate = t_label / n_label =
t_learn. The learner is one process, so its rate is the need, or the rate of another pool at its most, if that is lower.
A pool gets the fewest lanes that reach the need with some capacity to spare. What keeps it from changing back and
forth: it grows below one threshold and shrinks above a higher one, only after several decisions that agree, and rests
after a change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from solon.elasticity.service import Service

NEAR = 0.95
"""A pool that reaches this share of the best that any of its sizes does needs no more lanes."""
ALIKE = 0.98
"""With this share, fewer lanes would do. The difference is the hysteresis of a pool that cannot reach the need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """What was measured of a pool."""

    size: int
    """Its lanes, those being replaced included."""
    service: Service | None
    """Time for a group in one lane; None: not measured yet."""
    places: float
    """Groups that one lane works on together."""

    def rate(self, size: int, in_flight: float) -> float:
        """Groups a second that this many of its lanes finish."""
        assert self.service is not None
        return self.service.rate(size, places=self.places, in_flight=in_flight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was measured of a run."""

    now_s: float
    """On the clock of `Past`."""
    learn_s: float | None
    """Seconds of the learner for a group: those for a step over the groups in a batch. None: not measured yet."""
    in_flight: float
    """Groups that may be generated or labelled while a batch is learned: the ledger's credits."""
    pools: Mapping[str, PoolLoad]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The sizes that a pool may have."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"bounds of {self.least} to {self.most} lanes, expected 1 <= least <= most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """See `solon.elasticity.config.ElasticityConfig` for the meaning of the rest."""

    pools: Mapping[str, Bounds]
    cooldown_s: float = 60.0
    max_step: int = 2
    agreeing: int = 2
    spare_share: float = 0.1
    shrink_share: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPast:
    """What was decided for a pool before."""

    changed_s: float = -math.inf
    """When its size last changed."""
    blocked_s: float = -math.inf
    """It does not grow before this time: a lane could not be added."""
    streak: int = 0
    """Decisions in a row that wanted it larger (positive) or smaller (negative)."""


@dataclass(frozen=True, slots=True)
class Past:
    """Everything that one decision leaves to the next."""

    pools: Mapping[str, PoolPast] = field(default_factory=dict)

    def of(self, name: str) -> PoolPast:
        """What is known of a pool."""
        return self.pools.get(name, PoolPast())

    def with_pool(self, name: str, past: PoolPast) -> Past:
        """The same with another past of one pool."""
        return Past({**self.pools, name: past})

    def blocked(self, name: str, until_s: float) -> Past:
        """A lane could not be added: the pool does not grow before `until_s`."""
        return self.with_pool(name, replace(self.of(name), blocked_s=until_s, streak=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size that a pool should have."""

    size: int
    reason: str
    """In words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Sizes by pool, and what the next decision needs to know."""

    sizes: Mapping[str, Size]
    past: Past


def decide(load: Load, limits: Limits, past: Past) -> Decision:
    """The sizes of all pools in `load`. At most one step of `max_step` up, or one lane down, per pool."""
    sizes, after = {}, past
    for name, pool in load.pools.items():
        bounds, before = limits.pools[name], past.of(name)
        wanted, reason = _wanted(name, load, limits)
        direction = (wanted > pool.size) - (wanted < pool.size)
        same = direction * before.streak > 0
        streak = direction * (abs(before.streak) + 1 if same else 1)
        is_outside = not bounds.least <= pool.size <= bounds.most
        is_resting = load.now_s < before.changed_s + limits.cooldown_s
        now = replace(before, streak=streak)
        if direction > 0 and load.now_s < before.blocked_s:
            wanted, reason = pool.size, f"{reason}; a lane could not be added lately"
        elif direction and not is_outside and is_resting:
            wanted, reason = pool.size, f"{reason}; it changed {load.now_s - before.changed_s:.0f} s ago"
        elif direction and not is_outside and abs(streak) < limits.agreeing:
            wanted, reason = pool.size, f"{reason}; wanted {abs(streak)} of {limits.agreeing} times in a row"
        size = min(wanted, pool.size + limits.max_step) if wanted > pool.size else max(wanted, pool.size - 1)
        if size != pool.size:
            now = replace(now, changed_s=load.now_s, streak=0)
        sizes[name], after = Size(size=size, reason=reason), after.with_pool(name, now)
    return Decision(sizes=sizes, past=after)


def _wanted(name: str, load: Load, limits: Limits) -> tuple[int, str]:
    """The size that the measurements ask for, without regard to what was decided before."""
    pool, bounds = load.pools[name], limits.pools[name]
    if pool.size < bounds.least:
        return bounds.least, f"{pool.size} of {name}, at least {bounds.least} are set"
    if pool.size > bounds.most:
        return bounds.most, f"{pool.size} of {name}, at most {bounds.most} are set"
    if bounds.least == bounds.most:
        return pool.size, f"{name} has a fixed size"
    if pool.service is None or load.learn_s is None:
        return pool.size, f"{'learn' if pool.service else name} is not measured yet"
    need, who = _need(name, load, limits)
    best = pool.rate(bounds.most, load.in_flight)

    def enough(size: int, *, grows: bool) -> bool:
        spare, of_best = (limits.spare_share, NEAR) if grows else (limits.shrink_share, ALIKE)
        return pool.rate(size, load.in_flight) >= min((1 + spare) * need, of_best * best)

    have = pool.rate(pool.size, load.in_flight)
    said = f"{pool.size} of {name} can make {have:.3g} groups/s, {who} {need:.3g}"
    if not enough(pool.size, grows=True):
        sizes = range(pool.size + 1, bounds.most + 1)
        size = next((size for size in sizes if enough(size, grows=True)), bounds.most)
        return size, f"{said}: {size} are needed"
    if pool.size > bounds.least and enough(pool.size - 1, grows=False):
        sizes = range(bounds.least, pool.size)
        size = next(size for size in sizes if enough(size, grows=False))
        return size, f"{said}: {size} would do"
    return pool.size, f"{said}: balanced"


def _need(name: str, load: Load, limits: Limits) -> tuple[float, str]:
    """Groups a second that the rest of the run can take from a pool, or give to it, and who limits them."""
    assert load.learn_s is not None
    rates = {"learn takes": 1 / max(load.learn_s, 1e-9)}
    for other, pool in load.pools.items():
        if other != name and pool.service is not None:
            rates[f"{other} at its most passes on"] = pool.rate(limits.pools[other].most, load.in_flight)
    who = min(rates, key=lambda key: rates[key])
    return rates[who], who
