"""How many groups may be admitted: the staleness credits, bounded by bytes and by what the run still needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from solon.ledger.config import LedgerConfig
from solon.ledger.staleness import StalenessConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a ledger holds at one moment. Groups, except for the bytes."""

    held: int
    """Neither committed nor dropped."""
    leased: int
    """Of these, in the batch that is being trained."""
    unpublished: int
    """Leased or trained, in steps whose weights are not live yet."""
    nbytes: int
    """Payload of the held groups."""
    unwritten_bytes: int
    """Payload that is kept until it is written to disk."""


def is_over_budget(config: LedgerConfig, *, nbytes: int, unwritten_bytes: int) -> bool:
    """Whether held and unwritten payloads fill the byte budget."""
    return nbytes + unwritten_bytes >= config.max_held_mib * 2**20


def credits(config: LedgerConfig, staleness: StalenessConfig, holdings: Holdings, *, still_needed: int | None) -> int:
    """Groups that may be admitted now.

    still_needed: groups to commit before the run is over, held ones included; None: no limit.
    """
    free = staleness.credits(
        batch_groups=config.batch_groups,
        uncommitted=holdings.held - holdings.leased,
        unpublished=holdings.unpublished,
    )
    free = min(free, _credits_by_size(config, holdings))
    return free if still_needed is None else min(free, still_needed - holdings.held)


def _credits_by_size(config: LedgerConfig, holdings: Holdings) -> int:
    """Groups that the byte budget allows.

    A batch larger than the budget is let through alone: fewer groups than a batch can never be trained, so their bytes
    would never be freed.
    """
    if holdings.unwritten_bytes >= config.max_held_mib * 2**20:
        return 0  # freed by writing, which waits for no group
    if is_over_budget(config, nbytes=holdings.nbytes, unwritten_bytes=holdings.unwritten_bytes):
        return max(0, config.batch_groups - holdings.held)
    return sys.maxsize
