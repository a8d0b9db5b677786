"""What a person is told when a file does not fit the model that owns it: place, got, expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from solon.errors import nearest, short

MOST = 5
"""Mistakes that are named; a file with more gets their number."""


def describe_invalid(model: type[BaseModel], error: ValidationError) -> str:
    """All mistakes in one line, unknown keys with the nearest known one.

    Of a model that says `hide_input_in_errors`, nothing that was got is shown: it may be a secret in the wrong field.
    """
    items = error.errors(include_url=False)
    hidden = bool(model.model_config.get("hide_input_in_errors"))
    parts = [_describe(model, item, hidden=hidden) for item in items[:MOST]]
    return "; ".join(parts) + (f"; and {len(items) - MOST} more" if len(items) > MOST else "")


NOTHING = "none"
"""How a TOML file and `--set` say that an optional number or section is not there."""


def with_nothing(model: type[BaseModel], raw: Any) -> Any:
    """What a person wrote, with None for `"none"` wherever the model takes None and no text.

    TOML has no word for it. What is no mapping, or unknown to the model, is left to its own check.
    """
    if not isinstance(raw, Mapping):
        return raw
    found = dict(raw)
    for name, field in model.model_fields.items():
        if name not in found:
            continue
        kinds = get_args(field.annotation)
        if found[name] == NOTHING and type(None) in kinds and str not in kinds:
            found[name] = None
        elif (inner := _model_in(field.annotation)) is not None:
            found[name] = with_nothing(inner, found[name])
    return found


def _describe(model: type[BaseModel], item: Any, *, hidden: bool) -> str:
    place = ".".join(str(part) for part in item["loc"])
    message, kind = item["msg"].removeprefix("Value error, "), item["type"]
    if kind == "extra_forbidden":
        return f"unknown key `{place}`{nearest(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}"
    if kind == "missing":
        return f"`{place}` is missing; it is required"
    if kind == "value_error":
        return f"`{place}`: {message}" if place else message
    got = f"a {type(item['input']).__name__}" if hidden else short(item["input"])
    if kind in ("model_type", "dict_type"):
        return f"`{place}` got {got}, expected a section with keys of its own"
    hint = "; put it in quotes" if kind == "string_type" and not isinstance(item["input"], list | dict) else ""
    return f"`{place}` got {got}, expected {re.sub('^Input should be ', '', message)}{hint}"


def _known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Keys of the section at a place; none when no model owns it."""
    for part in place:
        if isinstance(part, int):  # the place in a list: its items are of one model
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        inner = None if field is None else _model_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """`Section`, `Section | None` and `tuple[Section, ...]` are owned by Section."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
