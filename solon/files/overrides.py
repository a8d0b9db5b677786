"""`--set section.key=value`: changes a value of a configuration file on the command line; and dotted keys."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from solon.errors import InputError, short
from solon.files.toml_file import MAX_DEPTH, is_deep
from solon.files.validation import describe_invalid, with_nothing

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_override(text: str) -> tuple[str, Any, str]:
    """(key, value parsed as TOML, value as written). Raises InputError.

    >>> parse_override("learn.epochs=2")
    ('learn.epochs', 2, '2')
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or key.count(".") > MAX_DEPTH:
        raise InputError(f"--set got {short(text)}, expected key=value as in --set learn.epochs=1")
    return key, _value(value), value.strip()


def put(raw: dict[str, Any], key: str, value: Any, text: str) -> None:
    """Put a value at a dotted key. Raises InputError when a part of the key is a value, not a section."""
    *sections, last = key.split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"--set got {short(text)}, but {section!r} is a value, not a section")
    place[last] = value


def _value(text: str) -> Any:
    """A TOML value, or a JSON object or list; a bare word is text, and so is a value with trailing characters."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return _json(text.strip())
    return parsed["value"] if len(parsed) == 1 and not is_deep(parsed) else text.strip()


def _json(text: str) -> Any:
    """A JSON object or list, `{"enable_thinking": false}`; any other text unchanged."""
    if not text.startswith(("{", "[")):
        return text
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if is_deep({"value": parsed}) else parsed


def flat_items(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested tables with its dotted key.

    >>> dict(flat_items({"a": {"b": 1}, "c": 2}))
    {'a.b': 1, 'c': 2}
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat_items(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def settings_from(model: type[ModelT], defaults: Mapping[str, Any], overrides: Sequence[str]) -> ModelT:
    """Settings of a command that reads no file: defaults with `--set` overrides. Raises InputError."""
    raw = {**defaults}
    for override in overrides:
        key, value, _ = parse_override(override)
        put(raw, key, value, override)
    try:
        return model.model_validate(with_nothing(model, raw))
    except ValidationError as error:
        raise InputError(f"--set: {describe_invalid(model, error)}") from None
