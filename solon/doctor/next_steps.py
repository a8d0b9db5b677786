"""What to do about a run in its present state: the exact command where there is one. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from solon.doctor.ending import ending
from solon.doctor.facts import Facts
from solon.doctor.resuming import resume_command as resume_command
from solon.doctor.resuming import trained_nothing
from solon.ledger.drops import REPORT_FACTOR, excess

UP = ("starting", "running", "finishing", "stalled")
"""Statuses of a run with a live process."""
LITTLE_ROOM_BYTES = 2**30


def next_steps(facts: Facts, status: str, *, is_balanced: bool) -> list[str]:
    """What to do now, most urgent first."""
    resume = resume_command(facts.path, facts.config)
    room = ["free some space on the disk first"] if facts.free_bytes < LITTLE_ROOM_BYTES // 10 else []
    if not is_balanced:
        return [
            "keep this directory as it is, and report it: no run may end like this",
            "then train from the start under another --name: what this one trained on is not certain",
        ]
    if not facts.config and (facts.checkpoints or facts.last_step):
        return [
            "put config.json back: --resume refuses a run without it",
            "or train from the start under another --name",
        ]
    if status == "completed":
        return _after_training(facts)
    if status in ("starting", "running", "finishing"):
        end = f"to end it early and lose nothing: kill -TERM {facts.standing.pid}" if facts.standing else ""
        if status == "running" and (wrong := _wrong_so_far(facts)):
            return [*wrong, *([end] if end else [])]
        return [f"nothing, look again later{f'; {end}' if end and status == 'running' else ''}"]
    if status == "stalled":
        pid = facts.standing.pid if facts.standing else "PID"
        return [
            "look who waits for whom above, and at that worker's log in the Ray dashboard",
            f"end it: kill -TERM {pid}, and if it is still there after a minute, kill -KILL {pid}",
            *room,
            resume,
        ]
    if status == "failed":
        found = ending(facts.summary or {}, facts.config, facts.path)
        return [text for text in (found.remedy, *room, found.resume) if text]
    if status == "dead":
        where = facts.standing.host if facts.standing else "its machine"
        return [*room, resume, f"to learn why it died: dmesg -T | grep -iE 'out of memory|killed process' on {where}"]
    return [*_warnings(facts), *room, *_after_a_stop(facts)]


def _after_a_stop(facts: Facts) -> list[str]:
    """What to change, if an alarm stopped the run, and the command that resumes it."""
    found = ending(facts.summary or {}, facts.config, facts.path)
    return [text for text in (found.remedy, found.resume) if text]


def _trained_nothing(facts: Facts) -> bool:
    return trained_nothing(facts.summary or {})


def _after_training(facts: Facts) -> list[str]:
    """For a completed run: its warnings come before the path of its model."""
    best = next((c.name for c in facts.checkpoints if not c.problem), None)
    model = f"{facts.path / 'checkpoints' / best / 'policy'}" if best else ""
    wrong = _warnings(facts)
    if _trained_nothing(facts):
        return [*wrong, f"{model or 'its model'} is the policy as it was: no step moved it"]
    if wrong:
        return [*wrong, f"if that is as it should be, the model is {model}"] if model else wrong
    return [f"nothing; the aligned model is {model}" if model else "nothing"]


def _warnings(facts: Facts) -> list[str]:
    """The warnings of the summary; for a summary of an older version, those that its lines imply."""
    warnings = (facts.summary or {}).get("warnings")
    found = warnings if isinstance(warnings, list) else _wrong_so_far(facts)
    damaged = [damage.text for damage in facts.records.damages]
    return [f"look at this first: {text}" for text in (*damaged, *found)]


def _wrong_so_far(facts: Facts) -> list[str]:
    """Warnings that the lines of a run imply: too many dropped groups, or a last step that moved nothing."""
    wrong = []
    ledger = facts.config.get("ledger")
    allowed = ledger.get("max_dropped_share") if isinstance(ledger, Mapping) else None
    found = facts.account
    if isinstance(allowed, int | float) and found is not None and len(found.dropped) >= REPORT_FACTOR:
        committed = len(found.committed)
        if text := excess(found.reasons, committed, allowed):
            wrong.append(f"{text} ({committed or 'none'} trained)")
    last = facts.last_step or {}
    if last.get("learn/skipped/share") == 1:
        causes = [
            e.get("cause")
            for e in facts.events
            if e.get("event") == "nothing_moved" and e.get("step") == last.get("step")
        ]
        wrong.append(f"the last step moved nothing: {causes[-1] if causes else 'its gradient was exactly 0'}")
    return wrong
