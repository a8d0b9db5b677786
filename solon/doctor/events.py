"""Recent faults and alarms among the events of a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from solon.doctor.files import time_of
from solon.events import needs_attention

LATELY_S = 600.0
"""Faults are reported for this long."""


OWN_FINDINGS = ("alarm", "group_dropped")
"""Events with a heading of their own, `alarms` and `groups`."""


def recent_faults(events: Sequence[Mapping[str, Any]], *, now: float) -> list[str]:
    """Recent faults, one line for each kind, worker and cause; causes that differ only in numbers count as one."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], str] = {}
    for event in events:
        name = str(event.get("event"))
        if not needs_attention(name) or name in OWN_FINDINGS or time_of(event) < now - LATELY_S:
            continue
        cause = str(event.get("cause") or event.get("reason") or event.get("message") or event.get("kind") or "")
        if name == "learner_trained_again" and event.get("same_weights") is False:
            cause = "to other weights than the lost learner had"
        key = (name, str(event.get("worker") or ""), re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", cause)[:200])
        counts[key] += 1
        first.setdefault(key, " ".join(cause.split())[:160])
    return [
        f"{count} x {' '.join(part for part in (name.replace('_', ' '), worker) if part)}"
        + (f": {first[name, worker, kind]}" if kind else "")
        for (name, worker, kind), count in counts.most_common(8)
    ]


def pool_changes(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last resize of each pool since the run was last resumed, and how many workers joined and left."""
    last: dict[str, Mapping[str, Any]] = {}
    counts: Counter[str] = Counter()
    for event in events:
        name = event.get("event")
        if name == "resumed":
            last.clear()
            counts.clear()
        elif name == "resized":
            last[str(event.get("pool"))] = event
            counts["resized"] += 1
        elif name in ("lane_joined", "lane_left"):
            counts[str(name)] += 1
    lines = [
        f"{pool} was last resized from {event.get('before')} to {event.get('after')} workers: {event.get('reason')}"
        for pool, event in last.items()
    ]
    if counts:
        lines.append(
            f"{counts['resized']} resizes, {counts['lane_joined']} workers joined, {counts['lane_left']} left so far"
        )
    return lines


def alarms(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last alarm of each kind since the run was last resumed, with evidence and remedy; symptoms together."""
    last: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("event") == "resumed":
            last.clear()
        elif event.get("event") == "alarm":
            last[str(event.get("kind"))] = event
    symptoms = [kind.partition("/")[2] for kind in last if kind.startswith("symptom/")]
    lines = [
        f"{kind} at step {event.get('step')} ({event.get('action')}): "
        + "; ".join(str(event[key]) for key in ("message", "evidence", "remedy") if event.get(key))
        for kind, event in last.items()
        if not kind.startswith("symptom/")
    ]
    return [*lines, *([f"changed since the first windows: {', '.join(symptoms)}"] if symptoms else [])]
