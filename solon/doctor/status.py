"""The status of a run: which worker holds which groups, and who waits for whom.

The run writes it to `live.json`; `solon doctor` and the dump of a stalled run read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RunStatus(BaseModel):
    """One moment of a run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: float
    """`time.time()` when it was written."""
    pid: int
    host: str
    still_s: float = Field(ge=0)
    """Seconds since the ledger last changed."""
    groups: Mapping[str, int]
    """The ledger's groups by state, and running totals."""
    out: tuple[Mapping[str, Any], ...]
    """Groups that workers hold: ordinal, attempt, state, holder, seconds."""
    workers: tuple[Mapping[str, Any], ...]
    """Worker, state (up, being replaced, given up), recoveries."""
    batch_groups: int


def is_stuck(standing: RunStatus) -> bool:
    """No worker works and all of them wait. A group that a worker holds has its own deadline (solon.recovery.guard)."""
    at_work = standing.out or standing.groups.get("leased", 0)
    return not at_work and all(worker["state"] != "being replaced" for worker in standing.workers)


def who_waits(standing: RunStatus) -> list[str]:
    """Who waits for whom, one line each, the end of the chain first.

    Every stage of the loop waits for one of four things: a credit, a generated group, a batch, or a worker.
    """
    groups, lines = standing.groups, []
    for worker in standing.workers:
        if worker["state"] != "up":
            lines.append(f"{worker['worker']} is {worker['state']}")
    by_holder: dict[str, list[Mapping[str, Any]]] = {}
    for item in standing.out:
        by_holder.setdefault(str(item["holder"] or "an unnamed worker"), []).append(item)
    for holder, items in by_holder.items():
        oldest = items[0]
        again = f", attempt {oldest['attempt']}" if oldest["attempt"] else ""
        lines.append(
            f"{holder} holds {_groups(len(items))} ({oldest['state']}), for {oldest['seconds']:.0f} s the "
            f"oldest, group {oldest['ordinal']}{again}"
        )
    ready, leased = groups.get("ready", 0), groups.get("leased", 0)
    if leased:
        lines.append(f"the learner trains on {_groups(leased)}")
    elif ready < standing.batch_groups:
        lines.append(f"learn waits for a batch: {ready} of {standing.batch_groups} groups are ready")
    else:
        lines.append(f"learn waits for older groups than the {ready} that are ready, or for a checkpoint to be written")
    if waiting := groups.get("generated", 0):
        lines.append(f"label has {_groups(waiting)} waiting for a judge")
    if waiting := groups.get("pending", 0):
        lines.append(f"generate has {_groups(waiting)} waiting for an engine")
    elif not groups.get("generating", 0):
        if unwritten := groups.get("unwritten_bytes", 0):
            lines.append(f"{unwritten / 2**20:.1f} MiB of rollouts and labels wait to be written to the disk")
        lines.append(
            "generate waits for a credit: a group must be trained and its weights published first, or the run needs "
            "no more groups"
        )
    return lines


def _groups(count: int) -> str:
    return f"{count} group{'s' if count != 1 else ''}"
