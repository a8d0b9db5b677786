"""Label selectors: on which nodes the actors of a pool may run. Checked and matched as Ray and its autoscaler do.

{"solon.io/pool": "rollout", "ray.io/market-type": "!spot", "zone": "in(a, b)"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PREFIX = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_PREFIX}/)?{_NAME}")
_CONDITION = re.compile(rf"(!?)(?:({_NAME})|in\(({_NAME}(?:, ?{_NAME})*)\))")
_RANGE = "values have 1 to 63 letters, digits, '-', '_' and '.', and begin and end with a letter or a digit"


def check_labels(selector: dict[str, str]) -> dict[str, str]:
    """The selector itself. Raises ValueError where Ray would refuse it at the creation of the actor."""
    for key, condition in selector.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"got the label {key!r}, expected a name such as solon.io/pool")
        if not _CONDITION.fullmatch(condition):
            raise ValueError(
                f"got {condition!r} for the label {key}, expected a value, !value, in(a, b) or !in(a, b); {_RANGE}"
            )
    return selector


Labels = Annotated[dict[str, str], AfterValidator(check_labels)]
"""A field of a run file."""


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether the selector matches a node with these labels. A negated condition matches a node without the label."""
    return all(_holds(condition, labels.get(key)) for key, condition in selector.items())


def _holds(condition: str, value: str | None) -> bool:
    parsed = _CONDITION.fullmatch(condition)
    assert parsed is not None, "checked with the run file"
    negated, single, several = parsed.groups()
    values = {single} if single else {item.strip() for item in several.split(",")}
    return (value in values) != bool(negated)


def shown(selector: Mapping[str, str]) -> str:
    """`solon.io/pool=rollout, ray.io/market-type=!spot`"""
    return ", ".join(f"{key}={condition}" for key, condition in selector.items())
