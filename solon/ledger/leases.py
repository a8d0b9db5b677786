"""The items that the ledger hands out: a group to generate, a group to label, a batch to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to generate one group. `version` is live when granted: no token will be older.

    `attempt` fences late results; `sample_index` is what the sampling seed depends on. A group that is generated again
    because its worker was lost gets a new attempt and the same sample index, hence the same answers.
    """

    ordinal: int
    attempt: int
    version: int
    sample_index: int = 0
    salvage: tuple[Any, ...] = ()
    """Parts that lost engines had generated, in order; `version` is then the oldest version in them."""


@dataclass(frozen=True, slots=True)
class Work:
    """A generated group that waits for its labels."""

    ordinal: int
    attempt: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch handed to the learner. `token` fences: only the current lease can commit."""

    step: int
    token: int
    ordinals: tuple[int, ...]
    staleness: tuple[int, ...]
    payloads: tuple[tuple[Any, Any], ...]
    """(generation, feedback) of each group, in order of ordinals."""
