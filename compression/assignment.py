"""The format of every unit under a byte budget: least harm, by integer programming.

minimise  sum cost(unit, format) z    subject to  sum bytes(unit, format) z <= budget,  one format a unit
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from compression.sensitivity import Costs
from compression.units import Assignment, Unit, size_of, uniform
from solon.errors import InputError
from solon.models.formats import FORMATS, KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the trade-off between size and harm."""

    size: int
    cost: float
    assignment: dict[str, str]


def assign(units: Sequence[Unit], costs: Costs, budget: int) -> Point:
    """The assignment of least harm within `budget` bytes. Raises InputError that names the smallest possible size."""
    choices = [(unit, name) for unit in units for name in FORMATS if (unit.name, name) in costs]
    size = np.array([unit.size(FORMATS[name]) for unit, name in choices], float)
    cost = np.array([costs[unit.name, name] for unit, name in choices])
    least = sum(min(unit.size(FORMATS[name]) for own, name in choices if own is unit) for unit in units)
    _require(units, least, budget)
    one_each = np.array([[float(own is unit) for own, _ in choices] for unit in units])
    # Of assignments with equal harm the smallest: bytes count as a tie-breaker far below any harm.
    tie = 1e-9 * max(cost.max(), 1e-9) * size / size.max()
    solved = milp(
        cost + tie,
        constraints=[LinearConstraint(size[None], ub=budget), LinearConstraint(one_each, lb=1, ub=1)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
    )
    if solved.x is None:
        raise InputError(f"no assignment was found within {budget:,} bytes: {solved.message}; ask for a larger size")
    chosen = [choice for choice, taken in zip(choices, solved.x, strict=True) if taken > 0.5]
    return _point(units, costs, {unit.name: name for unit, name in chosen})


def front(units: Sequence[Unit], costs: Costs, *, points: int = 12) -> list[Point]:
    """Assignments of least harm at sizes from the smallest to the whole; each is smaller or less harmful than
    others."""
    sizes = [[unit.size(FORMATS[name]) for name in FORMATS if (unit.name, name) in costs] for unit in units]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    found: list[Point] = []
    for budget in np.linspace(least, most, points):
        point = assign(units, costs, int(budget))
        if not found or point.cost < found[-1].cost:
            found.append(point)
    return found


def random_assignments(
    units: Sequence[Unit], costs: Costs, budget: int, number: int, seed: int
) -> list[dict[str, str]]:
    """Assignments by chance within `budget` bytes, a baseline for chosen ones: from the smallest formats, random units
    take their next larger format until none fits any more. Raises InputError that names the smallest possible size."""
    choices = {
        unit.name: sorted({name for name in FORMATS if (unit.name, name) in costs}, key=lambda n: unit.size(FORMATS[n]))
        for unit in units
    }
    sizes = {(unit.name, name): unit.size(FORMATS[name]) for unit in units for name in choices[unit.name]}
    first = dict.fromkeys(choices, 0)
    least = sum(sizes[name, some[0]] for name, some in choices.items())
    _require(units, least, budget)
    rng, found = random.Random(seed), list[dict[str, str]]()
    for _ in range(number):
        places, left = dict(first), budget - least
        while True:
            steps = {
                name: sizes[name, choices[name][place + 1]] - sizes[name, choices[name][place]]
                for name, place in places.items()
                if place + 1 < len(choices[name])
            }
            fitting = [name for name, more in steps.items() if more <= left]
            if not fitting:
                break
            name = rng.choice(fitting)
            places[name] += 1
            left -= steps[name]
        found.append({name: choices[name][place] for name, place in places.items()})
    return found


def promoted(units: Sequence[Unit], costs: Costs, assignment: Assignment) -> dict[str, str] | None:
    """The assignment with one unit in a larger format: the one that saves most harm a byte. None: all are kept."""
    best: tuple[float, str, str] | None = None
    for unit in units:
        now = assignment[unit.name]
        for name in FORMATS:
            more = unit.size(FORMATS[name]) - unit.size(FORMATS[now])
            if (unit.name, name) not in costs or more <= 0:
                continue
            gain = (costs[unit.name, now] - costs[unit.name, name]) / more
            if best is None or gain > best[0]:
                best = gain, unit.name, name
    return {**assignment, best[1]: best[2]} if best else None


def _require(units: Sequence[Unit], least: int, budget: int) -> None:
    if least > budget:
        raise InputError(
            f"the linear layers take at least {least:,} bytes in these formats, expected at most {budget:,}; the "
            f"smallest size is {least / size_of(units, uniform(units, KEEP)):.3f} of what they take now"
        )


def _point(units: Sequence[Unit], costs: Costs, assignment: dict[str, str]) -> Point:
    cost = sum(costs[name, form] for name, form in assignment.items())
    return Point(size=size_of(units, assignment), cost=cost, assignment=assignment)
