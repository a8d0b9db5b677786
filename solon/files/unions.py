"""Merges mistakes in a union value into one: pydantic reports one for each member, under its own labels."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def merged_unions(model: type[BaseModel], items: Sequence[Any]) -> list[Any]:
    """Pydantic's mistakes, with one for each value that matches no member of its union.

    If the value has keys, a section was intended, and that section's own mistakes are kept.
    """
    found: list[Any] = []
    done: set[tuple[int | str, ...]] = set()
    for item in items:
        place, kinds = _union(model, item["loc"])
        if not kinds or len(item["loc"]) <= len(place):
            found.append(item)
            continue
        if place in done:
            continue
        done.add(place)
        found += _one(place, kinds, [other for other in items if tuple(other["loc"][: len(place)]) == place])
    return found


def _one(place: tuple[int | str, ...], kinds: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    at_once = [item for item in items if len(item["loc"]) == len(place) + 1]
    got = (at_once or items)[0]["input"]
    section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    if section is not None and (isinstance(got, Mapping) or not at_once):
        own = [item for item in items if item["loc"][len(place)] == section.__name__]
        return [{**item, "loc": (*place, *item["loc"][len(place) + 1 :])} for item in own]
    *first, last = [word for kind in kinds for word in _words(kind)]
    expected = f"{', '.join(first)} or {last}" if first else last
    return [{"type": "union", "loc": place, "msg": expected, "input": got}]


def _union(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[tuple[int | str, ...], list[Any]]:
    """The path of the first union field in a location, with the members; none: empty."""
    for depth, part in enumerate(loc, start=1):
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            break
        is_union = get_origin(field.annotation) in (Union, types.UnionType)
        kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] if is_union else []
        if len(kinds) > 1:
            return tuple(loc[:depth]), kinds
        inner = kinds[0] if kinds else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return (), []


def _words(kind: Any) -> list[str]:
    """How a kind of value is written in a run file."""
    if get_origin(kind) is Literal:
        return [repr(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [f"{{ {', '.join(f'{field.alias or name} = …' for name, field in kind.model_fields.items())} }}"]
    known = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a section"}
    if (get_origin(kind) or kind) in (tuple, list, set, frozenset):
        return ["a list"]
    return [known.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))]
