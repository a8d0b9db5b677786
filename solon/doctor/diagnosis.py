"""The state of a run and what to do next, in plain words. Pure: facts in, diagnosis out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.doctor.events import alarms, pool_changes, recent_faults
from solon.doctor.facts import Facts
from solon.doctor.headline import status_of
from solon.doctor.next_steps import LITTLE_ROOM_BYTES, UP, next_steps
from solon.doctor.status import who_waits
from solon.doctor.wording import some, span
from solon.feedback.watching.remedies import SPOILING
from solon.ledger.drops import summary
from solon.runs.integrity import said_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The report of `solon doctor`."""

    status: str
    """starting, running, finishing, stalled, completed, stopped, failed or dead."""
    is_well: bool
    headline: str
    findings: Mapping[str, Sequence[str]]
    """Lines under headings, in the order of display."""
    do: Sequence[str]
    """What to do next, most urgent first."""

    def as_json(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "status": self.status,
            "healthy": self.is_well,
            "headline": self.headline,
            "findings": {name: list(lines) for name, lines in self.findings.items()},
            "next": list(self.do),
        }


def diagnose(facts: Facts) -> Diagnosis:
    """The diagnosis of a run."""
    status, headline = status_of(facts)
    unbalanced = _unbalanced(facts)
    findings = {
        "numbers": unbalanced,
        "process": _process(facts, status),
        "waits": who_waits(facts.standing) if facts.standing and status in ("running", "stalled") else [],
        "workers": _workers(facts),
        "faults": recent_faults(facts.events, now=facts.now if status in UP else facts.last_sign),
        "pools": pool_changes(facts.events),
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


# -- findings ---------------------------------------------------------------------------------------------------------


def _unbalanced(facts: Facts) -> list[str]:
    """Errors in the accounts. Empty: they balance, as far as they were counted."""
    lines = []
    if facts.account is not None:
        for what, ordinals in (("lost without a trace", facts.account.lost), ("counted twice", facts.account.doubled)):
            if ordinals:
                lines.append(f"{len(ordinals)} groups are {what}: {some(sorted(ordinals))}")
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
    age = span(facts.now - standing.time)
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


def _groups(facts: Facts, status: str) -> list[str]:
    found = facts.account
    if found is None:
        return []
    trained = f"{len(found.committed)} trained, {len(found.dropped)} dropped"
    if status in UP or status == "dead":
        # The files do not list held groups; the ledger's last status does.
        held = facts.standing.groups.get("held", 0) if facts.standing else len(found.held)
        lines = [f"{trained}, {held} {'held' if status in UP else 'were held'}"]
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
        elif not facts.config:
            lines.append(f"whole: {names}; --resume needs config.json beside them")
        else:
            lines.append(f"whole: {names}; --resume continues from {whole[0].name}, which holds {held} groups{again}")
    unread = [checkpoint.name for checkpoint in whole if not checkpoint.is_read]
    if unread:
        lines.append(f"too large to be compared with their digests now: {', '.join(unread)}; `--thorough` reads them")
    lines += [f"damaged: {checkpoint.problem}" for checkpoint in facts.checkpoints if checkpoint.problem]
    if not whole:
        lines.append("none that is whole: --resume begins at the first step again")
    return lines


def _records(facts: Facts) -> list[str]:
    """Whether the append-only files are as the run wrote them."""
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
        lines.append(f"half done: {some(facts.left_over)}")
    return [*lines, "the next start of the run removes it"] if lines else []
