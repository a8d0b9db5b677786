"""One record for each group, from admission to its end: a line of `groups.jsonl` when it is trained or dropped.

    records.granted("rollout-0", grants)      # admitted, or generated again
    records.generated(report); records.taken("judge-0", work); records.labelled(report)
    lines = records.trained(lease)            # or records.dropped(ordinal, reason)

A group that is generated again after a loss has one line, of its last attempt. Unfinished records are saved with a
checkpoint, so a group that a resumed run trains keeps its times. Single-threaded: used only on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solon.clock import Clock
from solon.ledger.ledger import Grant, Lease, Work
from solon.protocols import GenerationReport, LabelReport

MOST_OPEN = 100_000
"""Unfinished records that are kept; a run that has more of them forgets the oldest."""
_EMPTY: Mapping[str, Any] = {
    "ordinal": None, "attempt": 0, "outcome": None, "step": None, "reason": None, "staleness": None, "version": None,
    "admitted": None, "granted": None, "generated": None, "taken": None, "labelled": None, "engine": None,
    "judge": None, "tokens": None, "labels": None, "invalid": None, "reward": None,
}  # fmt: skip
_OF_ATTEMPT = ("generated", "taken", "labelled", "judge", "tokens", "labels", "invalid", "reward", "version")
"""Keys that a new attempt begins without."""


class GroupRecords:
    """See the module. Times are seconds since the epoch."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._open: dict[int, dict[str, Any]] = {}

    def granted(self, holder: str, grants: Sequence[Grant]) -> None:
        """An engine was given these groups."""
        now = self._clock.wall()
        for grant in grants:
            record = self._record(grant.ordinal)
            if record["admitted"] is None and grant.attempt == 0:
                record["admitted"] = now
            record |= dict.fromkeys(_OF_ATTEMPT)
            record |= {"attempt": grant.attempt, "granted": now, "engine": holder}
        while len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]

    def generated(self, report: GenerationReport) -> None:
        """Its answers are complete."""
        record = self._record(report.ordinal)
        record |= {
            "attempt": report.attempt, "generated": self._clock.wall(), "tokens": report.num_tokens,
            "version": report.head,
        }  # fmt: skip

    def taken(self, holder: str, work: Sequence[Work]) -> None:
        """A judge took these groups."""
        now = self._clock.wall()
        for item in work:
            self._record(item.ordinal).update(taken=now, judge=holder)

    def labelled(self, report: LabelReport) -> None:
        """Its labels are complete. Nothing of a group that was dropped for them."""
        if (record := self._open.get(report.ordinal)) is None:
            return
        record |= {
            "labelled": self._clock.wall(), "labels": report.labels, "invalid": report.invalid,
            "reward": report.reward_mean,
        }  # fmt: skip

    def trained(self, lease: Lease) -> list[dict[str, Any]]:
        """The lines of the groups of a committed step."""
        staleness = dict(zip(lease.ordinals, lease.staleness, strict=False))
        return [
            self._end(ordinal, outcome="trained", step=lease.step, staleness=staleness.get(ordinal))
            for ordinal in lease.ordinals
        ]

    def dropped(self, ordinal: int, reason: str) -> dict[str, Any]:
        """The line of a dropped group."""
        return self._end(ordinal, outcome="dropped", reason=reason)

    def state(self) -> list[dict[str, Any]]:
        """Unfinished records, for a checkpoint."""
        return [dict(record) for record in self._open.values()]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue from a `state`."""
        self._open = {int(record["ordinal"]): {**_EMPTY, **record} for record in state}

    def _record(self, ordinal: int) -> dict[str, Any]:
        return self._open.setdefault(ordinal, {**_EMPTY, "ordinal": ordinal})

    def _end(self, ordinal: int, **fields: Any) -> dict[str, Any]:
        record = self._record(ordinal)
        del self._open[ordinal]
        return {"time": self._clock.wall(), **record, **fields}
