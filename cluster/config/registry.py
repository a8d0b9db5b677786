"""Finds the classes in a package folder: a class in a new file is registered without a list elsewhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: ModuleType, base: type[T], *, name: str) -> dict[str, type[T]]:
    """Every concrete subclass of `base` that a module of the package defines, by its class attribute `name`."""
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for one in vars(module).values():
            if not (isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__):
                continue
            key = getattr(one, name, "")
            if not key or inspect.isabstract(one):
                continue
            if key in found:
                raise TypeError(f"{found[key].__qualname__} and {one.__qualname__} are both {name} = {key!r}")
            found[key] = one
    return found
