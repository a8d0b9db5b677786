"""Values of foreign JSON files, made fit for tables and pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: object) -> float | None:
    """A finite number as a float, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def numbers(value: object) -> dict[str, float]:
    """The numbers of an object by name; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {clean(str(name)): found for name, one in value.items() if (found := number(one)) is not None}


def is_whole(value: object) -> bool:
    """A whole number that a table can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def sane(value: Any) -> Any:
    """A JSON value with texts that can be encoded, and None in place of numbers that fit no float."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): sane(one) for key, one in value.items()}
    if isinstance(value, list):
        return [sane(one) for one in value]
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (number(value) is None or abs(value) >= 2**1000)
    ):
        return None
    return value


def clean(text: str) -> str:
    """The text with each half of a surrogate pair, which no database stores, as `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
