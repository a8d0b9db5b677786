"""Finds the classes in a package folder: a class in a new file is registered without a list elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: ModuleType, base: type[T], *, name: str) -> dict[str, type[T]]:
    """Every subclass of `base` that a module of the package defines, by its class attribute `name`.

    Raises TypeError for one that lacks a method, and for two of one name.
    """
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for one in vars(module).values():
            if not (isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__):
                continue
            key = getattr(one, name, "")
            if not key:
                continue
            if missing := sorted(getattr(one, "__abstractmethods__", ())):
                raise TypeError(f"{one.__module__}.{one.__qualname__} has no {', '.join(missing)}; define it")
            if key in found:
                raise TypeError(f"{found[key].__qualname__} and {one.__qualname__} are both {name} = {key!r}")
            found[key] = one
    return found
