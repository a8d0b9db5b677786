"""The status of a run in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solon.doctor.facts import Facts
from solon.doctor.files import time_of
from solon.doctor.wording import clock, span

HANGS_S = 60.0
"""A driver writes `live.json` every few seconds; one that has not for this long is blocked."""


ELSEWHERE_S = 30.0
"""More recent activity of a run on another machine means that it is alive."""


def status_of(facts: Facts) -> tuple[str, str]:
    if _has_process(facts):
        return _status_alive(facts)
    done = f"after {_moved(facts.summary)}" if facts.summary else _steps(facts)
    if facts.summary is None:
        when = clock(facts.last_sign) if facts.last_sign else "an unknown time"
        began = any(event.get("event") == "started" for event in facts.events)
        what = done if began else "while it was starting"
        return "dead", f"died at about {when} {what}, without a summary: it was killed, or its machine was lost"
    status = str(facts.summary.get("status"))
    if status == "completed":
        return status, f"completed {done}"
    if status == "stopped":
        reason = facts.summary.get("stopped_by")
        cause = reason.get("message") or reason.get("kind") if isinstance(reason, Mapping) else None
        return status, f"stopped {done}" + (f": {cause}" if cause else ", as it was asked to")
    return "failed", f"failed {done}: {facts.summary.get('failure') or 'the summary does not say of what'}"


def _has_process(facts: Facts) -> bool:
    if facts.is_locked or facts.standing is None:
        return bool(facts.is_locked)
    age_s = facts.now - facts.standing.time
    if facts.standing.host != facts.host:
        # A lock does not always work over a network file system.
        return facts.summary is None and age_s < ELSEWHERE_S
    return facts.is_locked is None and facts.summary is None and bool(facts.pid_lives) and age_s < HANGS_S


def _status_alive(facts: Facts) -> tuple[str, str]:
    phase = next(
        (
            str(event["event"])
            for event in reversed(facts.events)
            if event.get("event") in ("started", "trained", "ended") and time_of(event) >= facts.started
        ),
        "",
    )
    if phase in ("trained", "ended"):
        return "finishing", f"finishing {_steps(facts)}: the last checkpoint, the last evaluation, the summary"
    if not phase:
        since = f" for {span(facts.now - facts.started)}" if facts.started else ""
        return "starting", f"starting{since}: engines load, or the evaluation before training runs"
    age_s = facts.now - (facts.standing.time if facts.standing else facts.last_sign)
    if age_s > HANGS_S:
        return "stalled", f"stalled for {span(age_s)}: its process exists, but writes nothing"
    still_s = facts.standing.still_s if facts.standing else 0.0
    if still_s >= _stall_s(facts):
        return "stalled", f"stalled for {span(still_s)}: its process exists, but no group moves"
    return "running", f"running, {_steps(facts)}"


def _stall_s(facts: Facts) -> float:
    recovery = facts.config.get("recovery")
    value = recovery.get("stall_s") if isinstance(recovery, Mapping) else None
    return float(value) if isinstance(value, int | float) else 600.0


def _moved(summary: Mapping[str, Any]) -> str:
    steps, moved = summary.get("steps", "?"), summary.get("steps_moved")
    if moved is None or moved == steps:
        return f"{steps} steps"
    return f"{steps} steps, {moved or 'none'} of which moved the policy"


def _steps(facts: Facts) -> str:
    of = f" of {facts.config['steps']}" if "steps" in facts.config else ""
    if facts.last_step is None:
        return f"before the first step{of}"
    time_s = time_of(facts.last_step)
    ago = f", the last one {span(facts.now - time_s)} ago" if time_s else ""
    return f"after {facts.steps_done} steps{of}{ago}"
