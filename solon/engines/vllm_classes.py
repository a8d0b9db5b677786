"""Keeps Transformers' own classes unchanged when vLLM serves a model through them.

vLLM has no code of its own for some architectures (OLMo 2 and 3, SmolLM3, Starcoder 2) and runs Transformers' class,
which it decorates for compilation in place, for the whole process. Every later model of that class in Transformers then
requires a vLLM configuration and fails. This module moves the decorations to a subclass that only vLLM's model uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def classes_left_alone() -> Iterator[None]:
    """Active while vLLM builds a model. Other threads must not build a model of the same class meanwhile."""
    from vllm.model_executor.models.transformers.base import Base

    originals: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}
    owners: list[Any] = []
    decorate = Base._decorate_cls_for_torch_compile

    def remember(self: Any, cls: type, *args: Any, **kwargs: Any) -> None:
        originals.setdefault(cls, (cls.__bases__, dict(vars(cls))))
        owners.append(self)
        decorate(self, cls, *args, **kwargs)

    Base._decorate_cls_for_torch_compile = remember
    try:
        yield
    finally:
        Base._decorate_cls_for_torch_compile = decorate
        for cls, (bases, attributes) in originals.items():
            decorated = move_to_subclass(cls, bases, attributes)
            for owner in owners:
                for module in owner.modules():
                    if type(module) is cls:
                        module.__class__ = decorated


def move_to_subclass(cls: type, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
    """Restore the previous bases and attributes of a class; returns a subclass with its present ones."""
    changed = {name: value for name, value in vars(cls).items() if attributes.get(name) is not value}
    added_bases = tuple(base for base in cls.__bases__ if base not in bases)
    for name in changed:
        if name in attributes:
            setattr(cls, name, attributes[name])
        else:
            delattr(cls, name)
    cls.__bases__ = bases
    return type(cls.__name__, (cls, *added_bases), changed | {"__module__": cls.__module__})
