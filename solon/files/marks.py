"""Marks on the fields of a configuration: a model name, a file, or a key that a resumed run may change.

    judge: ModelName = ""
    path: FilePath = ""
    steps: Annotated[int, MayChange()] = 100

A new section brings its own marks, so no list elsewhere has to name its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

EVERY = "*"
"""Stands for any name in the key of a table with free names: `pools.*.model`."""


@dataclass(frozen=True, slots=True)
class NamesModel:
    """The value is a directory of a model or a hub name, or several."""


@dataclass(frozen=True, slots=True)
class NamesFile:
    """The value is the path of a file."""


@dataclass(frozen=True, slots=True)
class NamesPrompts(NamesFile):
    """The same, or a dataset of the hub."""


@dataclass(frozen=True, slots=True)
class MayChange:
    """A resumed run may change the value: it affects duration, place or patience, not what is trained."""

    keys: tuple[str, ...] = ()
    """For a section: only these of its keys; none: all of them."""


Mark = NamesModel | NamesFile | NamesPrompts | MayChange
ModelName = Annotated[str, NamesModel()]
FilePath = Annotated[str, NamesFile()]
PromptsPath = Annotated[str, NamesPrompts()]
M = TypeVar("M", bound=BaseModel)
K = TypeVar("K")


def marked(model: type[BaseModel], mark: type[K]) -> tuple[str, ...]:
    """Dotted keys of the fields with this mark, in their order; `*` stands for the names of a table.

    >>> marked(RunFile, NamesPrompts)
    ('prompts', 'evaluate.prompts')
    """
    return tuple(key for key, _ in marks(model, mark))


def marks(model: type[BaseModel], mark: type[K]) -> Iterator[tuple[str, K]]:
    """The same with the marks themselves."""
    for name, field in model.model_fields.items():
        yield from ((name, found) for found in field.metadata if isinstance(found, mark))
        inner, way = _section(field.annotation)
        if inner is not None:
            yield from ((f"{name}.{way}{key}", found) for key, found in marks(inner, mark))


def may_change(model: type[BaseModel]) -> tuple[str, ...]:
    """Keys that a resumed run may change; a section stands for all of its keys."""
    found = []
    for key, mark in marks(model, MayChange):
        found += [f"{key}.{inner}" for inner in mark.keys] if mark.keys else [key]
    return tuple(found)


def is_among(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted key equals one of the patterns or lies below one.

    >>> is_among("pools.judge.model", ("pools.*.model",))
    True
    """
    parts = key.split(".")
    return any(
        len(wanted) <= len(parts)
        and all(want in (EVERY, part) for want, part in zip(wanted, parts[: len(wanted)], strict=True))
        for wanted in (pattern.split(".") for pattern in patterns)
    )


def is_exactly(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted key equals one of the patterns."""
    return is_among(key, tuple(pattern for pattern in patterns if pattern.count(".") == key.count(".")))


def rewrite(raw: Any, pattern: str, change: Callable[[str, Any], Any], *, place: str = "") -> None:
    """Replace every value at keys of this pattern in a file's content by `change(key, value)`."""
    first, _, rest = pattern.partition(".")
    if not isinstance(raw, dict):
        return
    for name in list(raw) if first == EVERY else [first]:
        if name not in raw:
            continue
        key = f"{place}.{name}" if place else name
        if rest:
            rewrite(raw[name], rest, change, place=key)
        else:
            raw[name] = change(key, raw[name])


def values(config: BaseModel, mark: type[K]) -> Iterator[str]:
    """Every text in the fields with this mark."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(found, mark) for found in field.metadata):
            yield from value if isinstance(value, tuple) else (value,)
        for inner in _sections(value):
            yield from values(inner, mark)


def mapped(config: M, mark: type[K], change: Callable[[str], str]) -> M:
    """A copy with the texts in fields with this mark replaced."""
    update: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(found, mark) for found in field.metadata):
            new: Any = tuple(map(change, value)) if isinstance(value, tuple) else change(value)
        elif isinstance(value, BaseModel):
            new = mapped(value, mark, change)
        elif isinstance(value, Mapping) and any(isinstance(item, BaseModel) for item in value.values()):
            new = {key: mapped(item, mark, change) for key, item in value.items()}
        else:
            continue
        if new != value:
            update[name] = new
    return config.model_copy(update=update) if update else config


def _sections(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
    elif isinstance(value, Mapping):
        yield from (item for item in value.values() if isinstance(item, BaseModel))


def _section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model of a section, and the pattern between its name and its keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    if get_origin(annotation) is dict:
        return _section(get_args(annotation)[1])[0], f"{EVERY}."
    return next((found for part in get_args(annotation) if (found := _section(part)[0]) is not None), None), ""
