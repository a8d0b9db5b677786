"""Single lines about a run: a step, an event, a warning, reward and health."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from solon.telemetry.overlap import LANES
from solon.telemetry.totals import RunTotals

BLOCKS = "▁▂▃▄▅▆▇█"


def step_line(totals: RunTotals) -> str:
    """One committed step, for logs."""
    last = totals.last
    reward = f"spread {totals.spreads[-1]:.3f}" if totals.is_relative else f"reward {totals.rewards[-1]:+.3f}"
    return (
        f"step {totals.steps}/{totals.total_steps}  {reward}  "
        f"staleness {last['batch/staleness/max']}  "
        + "  ".join(f"{lane} {last[f'overlap/busy/{lane}']:.0%}" for lane in LANES)
        + f"  binds {totals.overlap().binding_stage}"
    )


def repeated(event: str, count: int) -> str:
    """The text for the count-th event of its kind.

    >>> repeated("group_lost", 1), repeated("group_lost", 16)
    ('group lost', 'group lost, 16 times so far')
    """
    text = event.replace("_", " ")
    return text if count == 1 else f"{text}, {count} times so far"


def warning_line(totals: RunTotals, count: int) -> str:
    """A warning that the latest step moved nothing or had cut answers; count: such steps so far."""
    movement = totals.movement
    step = f"step {totals.steps}/{totals.total_steps}"
    if movement.cause:
        text = f"{step} moved nothing: {movement.cause}"
        return f"warning: {text}" if count == 1 else f"warning: {count} steps moved nothing so far; {text}"
    text = f"{step}: {movement.cut}"
    return f"warning: {text}" if count == 1 else f"warning: nearly all answers cut in {count} steps so far; {text}"


def alarm_line(alarm: Mapping[str, Any], count: int = 1) -> str:
    """An alarm of the watch, with evidence and remedy; count: alarms of this kind so far."""
    said = "; ".join(str(alarm[key]) for key in ("message", "evidence", "remedy") if alarm.get(key))
    again = f" ({count} times)" if count > 1 else ""
    return f"alarm {alarm.get('kind')} at step {alarm.get('step')}{again}: {said}"


def reward_line(totals: RunTotals) -> str:
    """The reward so far, as a line of blocks; its spread in a group where the mean is always 0."""
    name, values, sign = ("spread", totals.spreads, "") if totals.is_relative else ("reward", totals.rewards, "+")
    if not values:
        return f"{name}  waiting for the first batch"
    recent = values[-40:]
    known = [r for r in recent if math.isfinite(r)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    blocks = "".join(
        " " if not math.isfinite(r) else BLOCKS[round((r - low) / (high - low) * 7) if high > low else 0]
        for r in recent
    )
    return f"{name}  {blocks}  {recent[-1]:{sign}.3f} (first {values[0]:{sign}.3f})"


def health_line(totals: RunTotals) -> str:
    """Staleness, labels and weights in one line."""
    worst = max(totals.staleness, default=0)
    hits = totals.cache_hits / max(1, totals.questions)
    return (
        f"staleness {worst} of {totals.staleness_bound}   labels {totals.labels}, invalid {totals.invalid}, "
        f"from cache {hits:.0%}   " + _live_weights(totals)
    )


def _live_weights(totals: RunTotals) -> str:
    gap = f", gap {totals.max_gap:.1e}" if totals.published_versions else ""
    return f"weights version {totals.published_versions} attested{gap}"


def clock(seconds: float | None) -> str:
    """`01:23` or `1:02:03`."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
