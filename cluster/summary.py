"""The summary of a finished run, from the contents of its session."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.rewind import best_of
from cluster.session import RunSession
from solon.checkpoints.folder import CheckpointFolder
from solon.doctor.facts import look
from solon.doctor.goal import end_warnings


async def summarise(session: RunSession, status: str, failure: Exception | None) -> dict[str, Any]:
    """Everything in `summary.json` but `end`."""
    run, watching = session.run, session.watching
    publication = getattr(session, "publication", None)
    summary = session.totals.summary(
        status=status,
        counts=await session.ledger.counts(),
        attested=publication.attested if publication else 0,
        injected=session.directory.lines("chaos.jsonl"),
    )
    summary["warnings"] += end_warnings(
        session.totals.movement,
        *await session.finished(),
        allowed=run.ledger.max_dropped_share,
        failure=str(failure or ""),
    )
    if watching is not None:
        summary["warnings"] += watching.warnings(but=(session.stopped_by or {}).get("kind", ""))
    summary["eval"] = session.scores
    summary |= session.inputs.counts
    summary["quarantine"] = session.recorder.quarantine.summary()
    if watching is not None:
        summary["watch"] = watching.summary()
    if status == "stopped" and session.stopped_by is None and session.signals.received:
        session.stopped_by = {"kind": "signal", "message": session.signals.said()}
    if session.stopped_by is not None:
        windows = watching.watch.known if watching is not None else []
        best = best_of(CheckpointFolder(session.directory.path / "checkpoints"), windows, session.stopped_by)
        summary["stopped_by"] = session.stopped_by | {"checkpoint": best or None}
    if session.start.directory is not None and not session.has_resumed:
        summary |= counters_on_record(session.directory.path, attested=session.start.step, now=summary)
    summary["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if failure is not None:
        summary["failure"] = f"{type(failure).__name__}: {failure}"
    return summary


def counters_on_record(path: Path, *, attested: int, now: Mapping[str, Any]) -> dict[str, Any]:
    """For a process that ended before it took the run over: what the run's own lines say of its groups, and what the
    former process said of its audit. attested: the step of its checkpoint. now: the summary of this process."""
    former: Any = {}
    with suppress(OSError, ValueError):  # there is none: the former process was killed
        former = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    kept = {key: former[key] for key in ("groups", "watch") if isinstance(former, Mapping) and key in former}
    if (account := look(path).account) is not None:
        kept["groups"] = {
            "admitted": account.admitted,
            "committed": len(account.committed),
            "dropped": len(account.dropped),
            "held": len(account.held),
        }
    return {**kept, "weights": {**now["weights"], "attested": attested}}
