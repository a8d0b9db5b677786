"""Labelled groups, by deadline: a set of ordinals for each, so that adding one takes the same time however many wait.

A sorted list would move half of itself for every group: with the batches of 4,096 accelerators 64 KiB.
"""

from __future__ import annotations


class ReadyGroups:
    """`ready.add(deadline, ordinal)`, `ready.take(16)`."""

    def __init__(self) -> None:
        self._ordinals: dict[int, set[int]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, deadline: int, ordinal: int) -> None:
        """One that was not there."""
        same = self._ordinals.get(deadline)
        if same is None:
            same = self._ordinals[deadline] = set()
        same.add(ordinal)
        self._size += 1

    def remove(self, deadline: int, ordinal: int) -> None:
        """One that is there."""
        same = self._ordinals[deadline]
        same.remove(ordinal)
        self._size -= 1
        if not same:
            del self._ordinals[deadline]

    def by_deadline(self) -> dict[int, int]:
        """How many groups have each deadline."""
        return {deadline: len(same) for deadline, same in self._ordinals.items()}

    def take(self, count: int) -> list[int]:
        """Take the ordinals of this many groups, the earliest deadlines first, then the lowest ordinals; ascending."""
        taken: list[int] = []
        for deadline in sorted(self._ordinals):
            same = self._ordinals[deadline]
            left = count - len(taken)
            if not left:
                break
            if len(same) > left:
                part = sorted(same)[:left]
                same.difference_update(part)
                taken += part
                break
            taken += self._ordinals.pop(deadline)
        self._size -= len(taken)
        return sorted(taken)
