"""Methods of one budget: settings that grow until a method costs what the others cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.errors import InputError

MOST_STEP = 8.0
"""Largest factor between one attempt and the next: costs are not proportional to sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Settings and what they are multiplied by."""

    keys: Sequence[str]
    """`STAGE.KEY`: the name of a stage, or its type where it has none, and a key within it."""
    factor: float


def scaled(stages: Sequence[dict[str, Any]], by: Scaled, where: str) -> list[dict[str, Any]]:
    """The stages with whole numbers multiplied, at least 1. Changes what it is given. Raises InputError for a key that
    holds no whole number."""
    named = {str(one.get("name") or one.get("type")): one for one in reversed(stages)}
    for key in by.keys:
        stage, _, path = key.partition(".")
        inner, last = _place(named.get(stage), path)
        if inner is None or type(inner.get(last)) is not int:
            raise InputError(
                f"{where}: scales names {key!r}, expected a stage of the method ({', '.join(named)}) and a key in it "
                "that is set to a whole number; correct it, or set the key"
            )
        inner[last] = max(1, round(inner[last] * by.factor))
    return list(stages)


def next_size(size: float, cost: float, budget: float, tolerance: float) -> float | None:
    """The next attempt at a size whose cost is the budget; None: this one is close enough."""
    ratio = budget / cost
    if abs(1 - 1 / ratio) <= tolerance:
        return None
    return size * min(max(ratio, 1 / MOST_STEP), MOST_STEP)


def _place(stage: Mapping[str, Any] | None, path: str) -> tuple[Any, str]:
    inner: Any = stage
    *before, last = path.split(".")
    for part in before:
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return (inner if isinstance(inner, Mapping) else None), last
