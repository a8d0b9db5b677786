"""Copies that a compression tries, and what the gate said of each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compression.units import Assignment
from solon.models.formats import FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One compressed copy to be tried."""

    name: str
    algorithm: str
    assignment: dict[str, str]
    is_repaired: bool = False
    """Trained on the grid before it was rounded."""


@dataclass(slots=True, kw_only=True)
class Tried:
    """A candidate and what the gate said."""

    candidate: Candidate
    record: dict[str, Any]
    decision: dict[str, Any]
    size: int
    files: str = ""
    """Digest of the files that were measured."""
    figures: dict[str, Any] = field(default_factory=dict)


def read_tried(path: Path, candidate: Candidate) -> Tried | None:
    """What was measured of a candidate; None: nothing that can be used."""
    try:
        found = Tried(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if found.candidate != json.loads(json.dumps(asdict(candidate))):
        return None
    found.candidate = candidate
    return found


def described(assignment: Assignment) -> str:
    """How many units have which format."""
    names = [name for name in FORMATS if name in assignment.values()]
    return ", ".join(f"{list(assignment.values()).count(name)} x {name}" for name in names)
