"""How a run stands and what to do about it, in plain words. Pure: facts in, diagnosis out."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.doctor.facts import Facts
from solon.doctor.files import time_of
from solon.doctor.next_steps import LITTLE_ROOM_BYTES, UP, next_steps
from solon.doctor.status import who_waits
from solon.events import needs_attention
from solon.feedback.watching.remedies import SPOILING
from solon.ledger.drops import summary
from solon.runs.integrity import said_of

HANGS_S = 60.0
"""A driver writes `live.json` every few seconds; one that has not for so long does not get to it."""
ELSEWHERE_S = 30.0
"""Younger signs of a run on another machine mean that it is alive."""
LATELY_S = 600.0
"""Faults are told for so long."""

OWN_FINDINGS = ("alarm", "group_dropped")
"""Events that have a heading of their own, `alarms` and `groups`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `solon doctor` says."""

    status: str
    """starting, running, finishing, stalled, completed, stopped, failed or dead."""
    is_well: bool
    headline: str
    findings: Mapping[str, Sequence[str]]
    """Lines under a heading each, in the order in which they are shown."""
    do: Sequence[str]
    """What to do next, the first thing first."""

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "healthy": self.is_well,
            "headline": self.headline,
            "findings": {name: list(lines) for name, lines in self.findings.items()},
            "next": list(self.do),
        }


def diagnose(facts: Facts) -> Diagnosis:
    """The whole of it."""
    status, headline = _status(facts)
    unbalanced = _unbalanced(facts)
    findings = {
        "numbers": unbalanced,
        "process": _process(facts, status),
        "waits": who_waits(facts.standing) if facts.standing and status in ("running", "stalled") else [],
        "workers": _workers(facts),
        "faults": recent_faults(facts.events, now=facts.now if status in UP else facts.last_sign),
        "alarms": alarms(facts.events),
        "groups": _groups(facts, status),
        "checkpoints": _checkpoints(facts),
        "records": _records(facts),
        "disk": _disk(facts, status),
        "left over": _left_over(facts, status),
        "unclear": list(facts.problems),
    }
    return Diagnosis(
        status=status,
        is_well=status not in ("stalled", "failed", "dead") and not unbalanced and not facts.records.damages,
        headline=headline,
        findings={name: lines for name, lines in findings.items() if lines},
        do=next_steps(facts, status, is_balanced=not unbalanced),
    )


# -- how it stands --------------------------------------------------------------------------------------------------


def _status(facts: Facts) -> tuple[str, str]:
    if _has_process(facts):
        return _status_alive(facts)
    done = f"after {_moved(facts.summary)}" if facts.summary else _steps(facts)
    if facts.summary is None:
        when = _clock(facts.last_sign) if facts.last_sign else "an unknown time"
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
        # A lock does not always reach over a network's file system.
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
        since = f" for {_span(facts.now - facts.started)}" if facts.started else ""
        return "starting", f"starting{since}: engines load, or the evaluation before training goes on"
    age_s = facts.now - (facts.standing.time if facts.standing else facts.last_sign)
    if age_s > HANGS_S:
        return "stalled", f"stalled for {_span(age_s)}: its process is there, but writes nothing any more"
    still_s = facts.standing.still_s if facts.standing else 0.0
    if still_s >= _stall_s(facts):
        return "stalled", f"stalled for {_span(still_s)}: its process is there, but no group moves"
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
    ago = f", the last one {_span(facts.now - time_s)} ago" if time_s else ""
    return f"after {facts.steps_done} steps{of}{ago}"


# -- findings ---------------------------------------------------------------------------------------------------------


def _unbalanced(facts: Facts) -> list[str]:
    """What does not add up. Empty: it all does, as far as it was counted."""
    lines = []
    if facts.account is not None:
        for what, ordinals in (("lost without a trace", facts.account.lost), ("counted twice", facts.account.doubled)):
            if ordinals:
                lines.append(f"{len(ordinals)} groups are {what}: {_some(sorted(ordinals))}")
    groups = facts.summary.get("groups") if facts.summary else None
    if isinstance(groups, Mapping):
        told = {key: int(groups.get(key) or 0) for key in ("admitted", "committed", "dropped", "held")}
        if told["admitted"] != told["committed"] + told["dropped"] + told["held"]:
            lines.append(
                f"summary.json: {told['admitted']} groups were admitted, but {told['committed']} committed, "
                f"{told['dropped']} dropped and {told['held']} held"
            )
        is_listed = facts.account is not None and facts.records.has_account and not facts.account.unlisted
        if facts.account is not None and is_listed and facts.summary and _ended_well(facts.summary):
            counted = {"committed": len(facts.account.committed), "dropped": len(facts.account.dropped)}
            lines += [
                f"summary.json says {told[key]} groups {key}, the lines say {count}"
                for key, count in counted.items()
                if told[key] != count
            ]
    return lines


def _ended_well(summary: Mapping[str, Any]) -> bool:
    return summary.get("status") in ("completed", "stopped")


def _process(facts: Facts, status: str) -> list[str]:
    standing = facts.standing
    if standing is None:
        return ["its lock is held"] if facts.is_locked else []
    age = _span(facts.now - standing.time)
    where = "" if standing.host == facts.host else ", which is not this machine"
    if status in UP:
        return [f"pid {standing.pid} on {standing.host}{where}, written {age} ago, last moved {standing.still_s:.0f} s "
                "before that"]  # fmt: skip
    if status == "dead":
        again = f"; there is another process {standing.pid} now" if facts.pid_lives else ""
        return [f"it was pid {standing.pid} on {standing.host}{where}; last seen alive {age} ago{again}"]
    return []


def _workers(facts: Facts) -> list[str]:
    if facts.standing is None:
        return []
    lines = []
    for worker in facts.standing.workers:
        again = int(worker.get("recovered") or 0)
        times = f" (replaced {again} time{'s' if again > 1 else ''})" if again else ""
        lines.append(f"{worker.get('worker')} {worker.get('state')}{times}")
    return [", ".join(lines)] if lines else []


def recent_faults(events: Sequence[Mapping[str, Any]], *, now: float) -> list[str]:
    """What went wrong lately, one line for each kind, worker and cause; numbers do not make a cause another one."""
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


def _groups(facts: Facts, status: str) -> list[str]:
    found = facts.account
    if found is None:
        return []
    trained = f"{len(found.committed)} trained, {len(found.dropped)} dropped"
    if status in UP or status == "dead":
        # The lines know nothing of what is in hand; the ledger does, or did when it was last heard of.
        held = facts.standing.groups.get("held", 0) if facts.standing else len(found.held)
        lines = [f"{trained}, {held} {'in hand' if status in UP else 'were in hand'}"]
    else:
        lines = [f"{found.admitted} admitted: {trained}, {len(found.held)} held"]
    if found.unlisted:
        lines[0] += f", {len(found.unlisted)} trained or dropped as a checkpoint says, whose lines are gone"
    if found.is_balanced and facts.records.has_account:
        lines[0] += "; nothing is counted twice" + (", nothing is lost" if status in ("completed", "stopped") else "")
    lines += [f"dropped {count}: {cause[:400]}" for cause, count in summary(found.reasons)[:5]]
    return lines


def _checkpoints(facts: Facts) -> list[str]:
    lines = []
    whole = [checkpoint for checkpoint in facts.checkpoints if not checkpoint.problem]
    if whole:
        names = ", ".join(checkpoint.name for checkpoint in reversed(whole))
        held = len(whole[0].cut.entries) if whole[0].cut else 0
        steps = facts.steps_done - whole[0].step
        again = f"; {steps} step{'s are' if steps > 1 else ' is'} trained again" if steps > 0 else ""
        stopped = (facts.summary or {}).get("stopped_by")
        if isinstance(stopped, Mapping) and stopped.get("kind") in SPOILING:
            lines.append(
                f"whole: {names}; an alarm stopped the run, gold liked {stopped.get('checkpoint')} best of them"
            )
        else:
            lines.append(f"whole: {names}; --resume goes on from {whole[0].name}, which holds {held} groups{again}")
    unread = [checkpoint.name for checkpoint in whole if not checkpoint.is_read]
    if unread:
        lines.append(f"too large to be compared with their digests now: {', '.join(unread)}; `--thorough` reads them")
    lines += [f"damaged: {checkpoint.problem}" for checkpoint in facts.checkpoints if checkpoint.problem]
    if not whole:
        lines.append("none that is whole: --resume begins at the first step again")
    return lines


def _records(facts: Facts) -> list[str]:
    """Whether the files that a run only adds to are what it wrote."""
    lines = said_of(facts.records, facts.whole.name if facts.whole else "the first step")
    if facts.whole is not None and not facts.records.is_recorded:
        lines.append(f"{facts.whole.name} keeps no digests of them: whether lines were cut is not known")
    if facts.records.unread:
        lines.append(f"too large to be compared now: {', '.join(facts.records.unread)}; `--thorough` reads them")
    for event in facts.events:
        found = event.get("records")
        if event.get("event") == "resumed" and isinstance(found, list) and found:
            lines.append(f"when it was resumed from step {event.get('step')}: {'; '.join(map(str, found))}")
    return lines


def _disk(facts: Facts, status: str) -> list[str]:
    lines = []
    if facts.free_bytes < LITTLE_ROOM_BYTES:
        lines.append(f"only {facts.free_bytes >> 20} MiB are free")
    if status in UP and not facts.has_ballast:
        lines.append("the ballast is used up: the disk was full")
    return lines


def _left_over(facts: Facts, status: str) -> list[str]:
    if status in UP:
        return []
    lines = [f"{name} ends in half a line" for name in facts.torn]
    if facts.left_over:
        lines.append(f"half done: {_some(facts.left_over)}")
    return [*lines, "the next start of the run removes it"] if lines else []


# -- wording ----------------------------------------------------------------------------------------------------------


def _some(items: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:10])
    return shown if len(items) <= 10 else f"{shown} and {len(items) - 10} more"


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
