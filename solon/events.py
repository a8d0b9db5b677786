"""Every event of a run: its name, fields, severity and meaning. `events.jsonl` holds one line for each occurrence.

    emit("worker_lost", worker="judge-0", cause="its node died")

The summary, `solon doctor`, the live view and docs/data.md read this table. A test checks the name and the fields of
every `emit` and `event` call in the source against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, get_args

from solon.redaction import redacted


class Severity(StrEnum):
    """How much an event matters to the person who watches the run."""

    INFO = "info"
    """Normal operation."""
    WARNING = "warning"
    """Needs attention, or may become a fault."""
    FAULT = "fault"
    """Something failed or was lost. The run replaced it, or did without it."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of an event's line: `Field(int, "committed steps")`."""

    type: type | UnionType
    """Type of its JSON value. An int may stand for a float."""
    meaning: str

    def accepts(self, value: object) -> bool:
        """Whether a JSON value has this type."""
        types = get_args(self.type) or (self.type,)
        if isinstance(value, bool):
            return bool in types
        return isinstance(value, (*types, int) if float in types else types)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """What one kind of event is.

    EventKind(name="call_lost", severity=Severity.FAULT, meaning="a worker did not answer one call", fields={...})
    """

    name: str
    severity: Severity
    meaning: str
    """One line for docs/data.md."""
    fields: Mapping[str, Field]
    """Keys of its line besides `time` and `event`."""
    optional: frozenset[str] = frozenset()
    """Fields that a line may lack."""
    is_shown: bool = True
    """The view of a run reports it."""
    is_counted: bool = False
    """`faults.by_event` of the summary counts it."""


def _info(
    name: str,
    meaning: str,
    *,
    optional: tuple[str, ...] = (),
    shown: bool = False,
    counted: bool = False,
    **fields: Field,
) -> EventKind:
    return EventKind(
        name=name, severity=Severity.INFO, meaning=meaning, fields=fields,
        optional=frozenset(optional), is_shown=shown, is_counted=counted,
    )  # fmt: skip


def _warning(name: str, meaning: str, **fields: Field) -> EventKind:
    return EventKind(name=name, severity=Severity.WARNING, meaning=meaning, fields=fields)


def _fault(name: str, meaning: str, **fields: Field) -> EventKind:
    return EventKind(name=name, severity=Severity.FAULT, meaning=meaning, fields=fields, is_counted=True)


_WORKER = Field(str, "its name")
_CAUSE = Field(str, "why")
_REASON = Field(str, "why")
_ORDINAL = Field(int, "the group")
_ATTEMPT = Field(int, "attempt of the group")

_KINDS = (
    # -- a run from start to end
    _info(
        "started",
        "training begins",
        config_hash=Field(str, "of the configuration"),
        step=Field(int, "the first step"),
    ),
    _info(
        "resumed",
        "another process resumes the run",
        step=Field(int, "of the checkpoint"),
        admitted=Field(int, "groups begun by then"),
        held=Field(list, "ordinals that the checkpoint holds"),
        damaged=Field(list, "checkpoints that could not be used, and why"),
        aside=Field(list, "later checkpoints that were set aside, where the run went back (`--from`)"),
        changed=Field(dict, "settings changed from here on, [before, now] by key, where the run went back"),
        records=Field(list, "files that were cut or edited since the checkpoint, a sentence each"),
        unlisted=Field(
            bool,
            "whether those files account for groups: then the checkpoint counts for all groups before it",
        ),
        optional=("aside", "changed"),
        shown=True,
        counted=True,
    ),
    _info(
        "published",
        "a policy version is attested on every engine",
        version=Field(int, "its number"),
        engines=Field(list, "their names"),
        pause_s=Field(float, "longest pause of an engine, seconds"),
        max_logprob_gap=Field(float, "largest difference of canary log-probs so far, nats"),
        mean_logprob_gap=Field(float, "their mean absolute difference for this version, nats"),
    ),
    _fault(
        "attestation_failed",
        "an engine does not run the published weights; during a publication this ends the run",
        worker=_WORKER,
        version=Field(int, "of the policy"),
        cause=_CAUSE,
    ),
    _info(
        "checkpoint",
        "a checkpoint is complete",
        step=Field(int, "its step"),
        held=Field(int, "groups in it"),
        seconds=Field(float, "from the state's moment until it was complete"),
        paused_s=Field(float, "of them those in which no step could run, seconds"),
    ),
    _info(
        "trained",
        "the last step is committed",
        step=Field(int, "committed steps"),
        stopped=Field(bool, "whether the run was stopped"),
    ),
    _info("ended", "the process is about to write its summary", steps=Field(int, "committed steps")),
    # -- groups
    _warning("group_dropped", "a group is dropped; another prompt takes its place", ordinal=_ORDINAL, reason=_REASON),
    _fault("group_expired", "no result for a group within its lease; it is assigned again", ordinal=_ORDINAL),
    _fault(
        "group_lost",
        "a group is generated again",
        ordinal=_ORDINAL,
        attempt=Field(int, "attempt that was lost"),
        reason=_REASON,
    ),
    _fault("judge_lost", "a group is labelled again", ordinal=_ORDINAL, attempt=_ATTEMPT, reason=_REASON),
    _info(
        "late_generation_refused",
        "rollouts arrived for an attempt that is no longer current",
        ordinal=_ORDINAL,
        attempt=_ATTEMPT,
        shown=True,
    ),
    _info(
        "late_label_refused",
        "labels arrived for an attempt that is no longer current",
        ordinal=_ORDINAL,
        attempt=_ATTEMPT,
        shown=True,
    ),
    _info(
        "tokens_salvaged",
        "an engine continues from the tokens of a lost one",
        ordinal=_ORDINAL,
        tokens=Field(int, "tokens kept"),
        counted=True,
    ),
    # -- workers
    _info(
        "waiting_for_nodes",
        "the cluster has no room yet for some workers",
        workers=Field(list, "their names"),
        asks=Field(str, "resources that they request"),
    ),
    _fault("worker_lost", "a worker is gone", worker=_WORKER, cause=_CAUSE),
    _info(
        "worker_recovered",
        "its replacement is working",
        worker=_WORKER,
        downtime_s=Field(float, "seconds without it"),
        shown=True,
        counted=True,
    ),
    _info("lane_joined", "a worker joined its pool during training", shown=True, worker=_WORKER),
    _info(
        "lane_left",
        "a worker left its pool in good order",
        worker=_WORKER,
        returned=Field(int, "groups that it handed back unfinished"),
        shown=True,
    ),
    _info(
        "resized",
        "a pool is to grow or shrink: the load asks for it",
        pool=Field(str, "its name"),
        before=Field(int, "its workers"),
        after=Field(int, "workers that it is to have"),
        reason=Field(str, "why, with the rates that were measured"),
        shown=True,
    ),
    _warning(
        "lane_not_added",
        "a worker could not be added to its pool; its request is withdrawn, and the pool stays as it was",
        worker=_WORKER,
        cause=_CAUSE,
    ),
    _warning(
        "worker_draining",
        "a worker's machine is about to go: it moves to another one",
        worker=_WORKER,
        left_s=Field(float | None, "seconds until then; null: not announced"),
    ),
    _fault("worker_given_up", "no replacement; the other workers continue without it", worker=_WORKER, cause=_CAUSE),
    _fault("restart_failed", "a replacement did not start; another try follows", worker=_WORKER, cause=_CAUSE),
    _fault("call_lost", "a worker did not answer one call", worker=_WORKER, cause=_CAUSE),
    _fault(
        "learner_trained_again",
        "a new learner has caught up from the last checkpoint",
        steps=Field(int, "steps trained again"),
        same_weights=Field(bool, "whether they gave the same weights to the bit"),
    ),
    _fault(
        "stalled",
        "nothing has moved for a while",
        still_s=Field(float, "seconds without progress"),
        waits=Field(list, "who waits for whom"),
        tasks=Field(list, "where every task waits"),
    ),
    _warning(
        "driver_was_away",
        "the driver itself was suspended (Ctrl-Z, a debugger); no deadline ran meanwhile",
        seconds=Field(float, "for how long"),
    ),
    _warning(
        "ray_helper_lost",
        "a process of Ray that the run does not need has ended",
        worker=Field(str, "what it was"),
        cause=Field(str, "how it ended"),
    ),
    _warning("draining", "the driver's machine is about to go: the run stops", reason=Field(str, "what was announced")),
    # -- training
    _warning(
        "nothing_moved",
        "a step had a gradient of exactly 0: the policy is what it was",
        step=Field(int, "its number"),
        cause=Field(str, "why, and what helps"),
    ),
    _warning(
        "answers_cut",
        "at least 90 % of the answers of a step were cut at the length limit",
        step=Field(int, "its number"),
        cause=Field(str, "how many, and what helps"),
    ),
    _warning(
        "alarm",
        "the watch has raised an alarm",
        kind=Field(str, "of alarm"),
        step=Field(int, "at which"),
        value=Field(float | None, "what was measured"),
        threshold=Field(float | None, "what is allowed"),
        message=Field(str, "the cause in one sentence"),
        evidence=Field(str, "the numbers that it rests on, with the windows that they are of"),
        remedy=Field(str, "what to do about it"),
        sound_until=Field(int | None, "last step at which nothing was wrong yet; null: gold tells which was best"),
        action=Field(str, "`warn`, `raise_kl` or `stop`"),
    ),
    # -- files
    _warning(
        "space_short",
        "the disk has no room for the next checkpoint; reported once",
        checkpoint_bytes=Field(int, "size of the last one"),
        missing_bytes=Field(int, "bytes to free"),
        cause=Field(str, "the same in words"),
    ),
    _warning(
        "space_freed",
        "a checkpoint did not fit: the oldest one was removed for it",
        step=Field(int, "of the one that did not fit"),
        removed=Field(int, "step of the oldest"),
    ),
    _fault(
        "checkpoint_abandoned",
        "the learner was lost while it wrote a checkpoint; the previous one stays",
        step=Field(int, "of the one that was given up"),
        cause=_CAUSE,
    ),
    _fault(
        "upload_failed",
        "a checkpoint was not uploaded; the next one will be",
        checkpoint=Field(str, "its name"),
        cause=_CAUSE,
    ),
    _warning(
        "rows_lost",
        "a payload was lost with its machine before its rows were written",
        table=Field(str, "`rollouts` or `labels`"),
        ordinal=_ORDINAL,
        attempt=_ATTEMPT,
        cause=_CAUSE,
    ),
    _warning(
        "rows_unreadable",
        "a part could not be read, so that nothing was filled in",
        table=Field(str, "`rollouts`"),
        cause=_CAUSE,
    ),
)

EVENTS: Mapping[str, EventKind] = {kind.name: kind for kind in _KINDS}
"""Every kind of event, by name."""


def event_line(name: str, *, time_s: float, **fields: Any) -> dict[str, Any]:
    """One line of events.jsonl, without secrets.

    time_s: seconds since the epoch. Raises AssertionError for an event or a field that `EVENTS` does not have: a
    mistake in Solon, never in a user's input.
    """
    kind = EVENTS.get(name)
    assert kind is not None, f"event {name!r} is not in solon.events"
    unknown = fields.keys() - kind.fields.keys()
    assert not unknown, f"event {name!r} has no fields {sorted(unknown)}, expected {sorted(kind.fields)}"
    # A cause may quote a library that quotes an address.
    shown = {key: redacted(value) if isinstance(value, str) else value for key, value in fields.items()}
    return {"time": time_s, "event": name, **shown}


def is_shown(name: str) -> bool:
    """Whether the view of a run reports events of this name; False for a name of an older or newer version."""
    return name in EVENTS and EVENTS[name].is_shown


def is_counted(name: str) -> bool:
    """Whether the summary counts events of this name."""
    return name in EVENTS and EVENTS[name].is_counted


def needs_attention(name: str) -> bool:
    """Whether events of this name are warnings or faults."""
    return name in EVENTS and EVENTS[name].severity is not Severity.INFO
