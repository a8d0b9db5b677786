"""Divides the available work among the workers that ask for it: `deal` for all of them, `share` for one.

If the first worker took all that it has room for, the others would be idle until the next weights are published. So the
shares level the number of held groups, as far as room allows (water filling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A worker that waits for work, with room for `room` more groups. `is_up`: whether it could start now."""

    holder: str
    room: int
    is_up: Callable[[], bool] = lambda: True


def share(available: int, room: int, held: int, others: Sequence[tuple[int, int]] = ()) -> int:
    """Groups for a worker with room for `room` that holds `held` already; `others`: (room, held) of the other workers.

    The remainder of an uneven division goes to the workers that ask first.

    >>> [share(32, 64, 0, [(64, 0)] * 3), share(32, 64, 8, [(64, 0)]), share(3, 9, 5, [(2, 0)])]
    [8, 12, 1]
    """
    if not others:
        return min(room, available)
    asks = [(room, held), *others]
    if available >= sum(room for room, _ in asks):
        return room
    level, left = _level(available, asks)
    mine = min(max(level - held, 0), room)
    takes_the_odd_one = left > 0 and held <= level and mine < room
    return mine + takes_the_odd_one


def deal(available: int, asks: Sequence[tuple[int, int]]) -> list[int]:
    """Groups for each of the workers, given as (room, held). The remainder goes to the first of them.

    >>> deal(32, [(64, 0)] * 3), deal(3, [(2, 0), (9, 5)]), deal(9, [(2, 0), (3, 5)])
    ([11, 11, 10], [2, 1], [2, 3])
    """
    if available >= sum(room for room, _ in asks):
        return [room for room, _ in asks]
    level, left = _level(available, asks)
    parts = []
    for room, held in asks:
        part = min(max(level - held, 0), room)
        if left and held <= level and part < room:
            part, left = part + 1, left - 1
        parts.append(part)
    return parts


def _level(available: int, asks: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The highest number of held groups to which all workers can be filled, and the groups that are left then."""

    def poured(level: int) -> int:
        return sum([min(level - held, room) for room, held in asks if held < level])

    low, high = min(held for _, held in asks), max(room + held for room, held in asks)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if poured(middle) <= available else (low, middle - 1)
    return low, available - poured(low)
