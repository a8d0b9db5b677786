"""Transformers' own classes stay as they are when vLLM serves a model through them.

vLLM has no code of its own for some architectures (OLMo 2 and 3, SmolLM3, Starcoder 2) and runs Transformers' class,
which it decorates for compilation: in place, for the whole process. Every model of that class that Transformers builds
or runs afterwards then asks for a vLLM configuration and fails. Here the decorations move to a subclass that only
vLLM's model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def classes_left_alone() -> Iterator[None]:
    """While vLLM builds a model. Other threads that build a model of the same class in that time must wait."""
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
    """Give a class back the bases and attributes that it had; returns a subclass with what it has now."""
    changed = {name: value for name, value in vars(cls).items() if attributes.get(name) is not value}
    added_bases = tuple(base for base in cls.__bases__ if base not in bases)
    for name in changed:
        if name in attributes:
            setattr(cls, name, attributes[name])
        else:
            delattr(cls, name)
    cls.__bases__ = bases
    return type(cls.__name__, (cls, *added_bases), changed | {"__module__": cls.__module__})
