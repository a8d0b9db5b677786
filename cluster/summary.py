"""The summary of a finished run, from the contents of its session."""

from __future__ import annotations

import time
from typing import Any

from cluster.rewind import best_of
from cluster.session import RunSession
from solon.checkpoints.folder import CheckpointFolder
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
    summary["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if failure is not None:
        summary["failure"] = f"{type(failure).__name__}: {failure}"
    return summary
