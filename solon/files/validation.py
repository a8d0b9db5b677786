"""Error messages for a file that does not fit its model: place, got, expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from solon.errors import nearest, short
from solon.files.unions import merged_unions

MOST = 5
"""Most mistakes that are described; further ones are counted."""
DEEPEST = 4
"""Depth of nested sections that are searched for a key."""
OTHER_NAMES = {
    "rank": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lr": "learning_rate",
    "max_new_tokens": "max_tokens",
    "num_generations": "group_size",
    "kl_coef": "kl_coefficient",
    "vf_coef": "value_coefficient",
}
"""Other trainers' names of keys."""
_WORDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
}
"""The expected value, by pydantic's type of mistake."""
_LIMITS = {
    "string_pattern_mismatch": "text of the pattern {pattern}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}
"""The same with a limit."""


def describe_invalid(model: type[BaseModel], error: ValidationError) -> str:
    """All mistakes in one line, unknown keys with the nearest known one.

    For a model with `hide_input_in_errors` no input is shown: it may be a secret in the wrong field.
    """
    items = merged_unions(model, _without_consequences(error.errors(include_url=False)))
    hidden = bool(model.model_config.get("hide_input_in_errors"))
    parts = [_describe(model, item, hidden=hidden) for item in items[:MOST]]
    return "; ".join(parts) + (f"; and {len(items) - MOST} more" if len(items) > MOST else "")


NOTHING = "none"
"""How a TOML file and `--set` write that an optional number or section is absent."""


def with_nothing(model: type[BaseModel], raw: Any) -> Any:
    """The user's values with `"none"` replaced by None wherever the model accepts None and no text.

    TOML has no null. Values that are no mapping or unknown to the model are left to its own validation.
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
        return f"unknown key `{place}`{_hint(model, item['loc'])}"
    if kind == "missing":
        return f"`{place}` is missing; it is required{_only_value(model, item['loc'])}"
    if kind == "value_error":
        return f"`{place}`: {message}" if place else message
    got = f"a {type(item['input']).__name__}" if hidden else short(item["input"])
    if kind in ("model_type", "dict_type"):
        return f"`{place}` got {got}, expected a section with keys of its own"
    if kind in _WORDS or kind in _LIMITS:
        message = _WORDS.get(kind) or _LIMITS[kind].format(**item["ctx"])
    hint = "; put it in quotes" if kind == "string_type" and not isinstance(item["input"], list | dict) else ""
    return f"`{place}` got {got}, expected {re.sub('^Input should be ', '', message)}{hint}"


def _without_consequences(items: Sequence[Any]) -> list[Any]:
    """Drops follow-up mistakes: pydantic also reports a list of wrong items as too short, since it counts none."""
    places = [tuple(item["loc"]) for item in items]

    def is_consequence(item: Any) -> bool:
        loc = tuple(item["loc"])
        return item["type"] == "too_short" and any(len(p) > len(loc) and p[: len(loc)] == loc for p in places)

    return [item for item in items if not is_consequence(item)]


def _hint(model: type[BaseModel], place: Sequence[int | str]) -> str:
    """A guess of the intended key: another name of a key here, the same key in another section, or a similar key."""
    name, known = str(place[-1]), _known_keys(model, place[:-1])
    other = OTHER_NAMES.get(name, name)
    found = [other] if other in known else list(_places(model, name)) or list(_places(model, other))
    if found:
        return f" (did you mean {' or '.join(f'`{one}`' for one in found[:3])}?)"
    return nearest(name, known)


def _places(model: type[BaseModel], key: str, place: tuple[str, ...] = ()) -> Iterator[str]:
    """The places of a key of this name in the sections of a model."""
    for name, field in model.model_fields.items():
        here = (*place, field.alias or name)
        if here[-1] == key:
            yield ".".join(here)
        is_list = get_origin(field.annotation) in (tuple, list, dict)
        if not is_list and len(here) < DEEPEST and (inner := _model_in(field.annotation)) is not None:
            yield from _places(inner, key, here)


def _only_value(model: type[BaseModel], place: Sequence[int | str]) -> str:
    """The hint for a key with only one possible value."""
    *above, name = place
    owner = _owner(model, above)
    field = next((f for n, f in owner.model_fields.items() if name in (n, f.alias)), None) if owner else None
    values = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    return f", with the value `{values[0]}`" if len(values) == 1 else ""


def _known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Keys of the section at a place; none if it belongs to no model."""
    owner = _owner(model, place)
    return [] if owner is None else [field.alias or name for name, field in owner.model_fields.items()]


def _owner(model: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """The model of the section at a place."""
    for part in place:
        if isinstance(part, int):  # an index into a list, whose items share one model
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        inner = None if field is None else _model_in(field.annotation)
        if inner is None:
            return None
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section's model in `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
