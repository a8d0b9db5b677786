"""Objectives for a `Trainer`, one module and one class each.

The name of an objective is the name of its module, so a new objective is a new file here and nothing else:

    class Mine(PolicyObjective):        # learners/objectives/mine.py
        def prepare(self, batch, context): ...
        def loss(self, microbatch, denominator): ...

`prepare` returns `Prepared(minibatches=self.minibatches(self.batch_of(batch), context))`, and may add metrics, and
groups with advantages; metrics of the batch and its rewards are recorded in any case. `loss` yields a scalar, divided
by `denominator`, and its metrics. A subclass of `PolicyObjective` can be named by `learn.objective`. Modules are
imported on demand: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from solon.errors import InputError, nearest

if TYPE_CHECKING:
    from learners.core.objective import Objective
    from learners.core.policy_objective import PolicyObjective


def names() -> list[str]:
    """Every objective, by the files of this folder; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Objective[Any, Any]]:
    """The objective of this name. Raises InputError for an unknown name."""
    from learners.core.objective import Objective

    if name not in names():
        raise InputError(
            f"there is no objective {name!r}, expected one of {', '.join(names())}{nearest(name, names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, Objective)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    if len(found) != 1:
        raise ImportError(f"{module.__name__} defines {len(found)} objectives, expected one class")
    return found[0]


def names_for_policy() -> list[str]:
    """Objectives that train the policy of a run. Imports all of them."""
    from learners.core.policy_objective import PolicyObjective

    return [name for name in names() if issubclass(find(name), PolicyObjective)]


def find_for_policy(name: str) -> type[PolicyObjective]:
    """The objective of this name, if it trains the policy of a run. Raises InputError for an unknown name, and for an
    objective that learns from other data."""
    from learners.core.policy_objective import PolicyObjective

    if name not in names():
        known = names_for_policy()
        raise InputError(f"there is no objective {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    found = find(name)
    if not issubclass(found, PolicyObjective):
        raise InputError(
            f"objective {name!r} does not train a policy on labelled rollouts; set learn.objective to one of "
            f"{', '.join(repr(one) for one in names_for_policy())}"
        )
    return found
