"""Takes the held groups out of one process's ledger and puts them into another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solon.ledger.queues import Entry, GroupQueues
from solon.ledger.snapshot import LedgerSnapshot, SavedEntry, State, before_checkout
from solon.ledger.staleness import StalenessConfig

Payloads = dict[int, tuple[Any, Any]]
"""(generation, feedback) by ordinal; feedback is None for a group without labels."""


def saved_entries(queues: GroupQueues) -> tuple[tuple[SavedEntry, ...], Payloads]:
    """The held groups in order, each as it was before its worker checked it out, and their payloads."""
    entries = sorted(queues, key=lambda e: e.ordinal)
    saved = tuple(before_checkout(e) for e in entries)
    payloads = {
        e.ordinal: (e.generation, e.feedback)
        for e, kept in zip(entries, saved, strict=True)
        if kept.state is not State.PENDING
    }
    return saved, payloads


def restore_entries(
    queues: GroupQueues,
    cut: LedgerSnapshot,
    payloads: Mapping[int, tuple[Any, Any]],
    staleness: StalenessConfig,
    *,
    version: int,
) -> None:
    """Fill empty queues from a snapshot. `version`: the weights that the engines hold now.

    A group without payload, or one that can no longer be trained in time, is generated again.
    """
    for saved in cut.entries:
        entry = Entry(saved.ordinal, saved.attempt, version, failures=saved.failures, losses=saved.losses)
        entry.generation, entry.feedback = payloads.get(saved.ordinal, (None, None))
        is_late = staleness.deadline(saved.head) < version
        if saved.state is State.PENDING or entry.generation is None or is_late:
            entry.generation = entry.feedback = None
            queues.to_pending(entry)
            continue
        entry.head = saved.head
        queues.hold(entry, saved.nbytes)
        if saved.state is State.READY and entry.feedback is not None:
            queues.to_ready(entry)
        else:
            queues.to_generated(entry)
