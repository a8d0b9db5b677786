"""A ledger on disk: the part of a checkpoint with which another process resumes exactly the same work.

Committed groups are not listed: they are the ordinals below `admitted` that are neither held nor dropped.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator


class State(StrEnum):
    """State of a group that is neither committed nor dropped."""

    PENDING = "pending"
    GENERATING = "generating"
    GENERATED = "generated"
    JUDGING = "judging"
    READY = "ready"
    LEASED = "leased"


BEFORE = {State.GENERATING: State.PENDING, State.JUDGING: State.GENERATED, State.LEASED: State.READY}
"""State of a checked-out group before checkout."""


class SavedEntry(BaseModel):
    """A held group without its payload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ordinal: int = Field(ge=0)
    attempt: int = Field(ge=0)
    state: State
    head: int = Field(ge=0)
    nbytes: int = Field(ge=0)
    failures: int = Field(ge=0)
    losses: int = Field(ge=0)


class LedgerSnapshot(BaseModel):
    """`LedgerSnapshot.model_validate_json(text)`; raises ValidationError when no ledger can be in this state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    admitted: int = Field(ge=0)
    committed: int = Field(ge=0)
    dropped: dict[str, int]
    """By reason."""
    entries: tuple[SavedEntry, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> LedgerSnapshot:
        dropped, held = sum(self.dropped.values()), len(self.entries)
        if self.admitted != self.committed + dropped + held:
            raise ValueError(
                f"{self.admitted} groups were admitted, but {self.committed} are committed, {dropped} dropped and "
                f"{held} held"
            )
        ordinals = [entry.ordinal for entry in self.entries]
        if ordinals != sorted(set(ordinals)) or any(ordinal >= self.admitted for ordinal in ordinals):
            raise ValueError("the held groups are not in order, doubled, or were never admitted")
        return self

    def without(self, lost: set[int]) -> LedgerSnapshot:
        """The same with these groups pending: their payloads could not be saved, so they are generated again."""
        entries = tuple(
            e.model_copy(update={"state": State.PENDING, "attempt": e.attempt + 1, "nbytes": 0})
            if e.ordinal in lost
            else e
            for e in self.entries
        )
        return self.model_copy(update={"entries": entries})


class _Held(Protocol):
    ordinal: int
    attempt: int
    state: State
    head: int
    nbytes: int
    failures: int
    losses: int


def before_checkout(entry: _Held) -> SavedEntry:
    """A group as it was before checkout."""
    state = BEFORE.get(entry.state, entry.state)
    return SavedEntry(
        ordinal=entry.ordinal,
        attempt=entry.attempt,
        state=state,
        head=entry.head,
        nbytes=0 if state is State.PENDING else entry.nbytes,
        failures=entry.failures,
        losses=entry.losses,
    )
