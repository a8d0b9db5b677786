"""A pool with bounds, and how lanes are added to it and leave it. A change that fails leaves the pool as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from solon.elasticity.decide import Bounds
from solon.pipeline.pool import Pool, Seat
from solon.protocols import Lane

L = TypeVar("L", bound=Lane)


class ElasticPool(Generic[L]):
    """`await pool.grow(2, place_within_s=600)`; `await pool.leave("rollout-1", within_s=60)`"""

    def __init__(
        self,
        name: str,
        pool: Pool[L],
        bounds: Bounds,
        *,
        start: Callable[[str, float], Awaitable[L]],
        emit: Callable[..., None],
    ) -> None:
        """name: of the pool; new lanes are called NAME-N. start: starts a worker of this name, which must get a place
        on a node within these seconds; it withdraws the request when it raises or is cancelled."""
        self.name = name
        self.pool = pool
        self.bounds = bounds
        self._start = start
        self._emit = emit
        self._next = len(pool)
        self._changes = 0
        self._leaving: set[str] = set()

    @property
    def is_changing(self) -> bool:
        """Whether a lane is being added or is leaving."""
        return self._changes > 0

    @property
    def size(self) -> int:
        """Its lanes, those being replaced included."""
        return len(self.pool)

    @property
    def seats(self) -> list[Seat[L]]:
        """Of lanes that stay."""
        return [seat for seat in self.pool.seats if seat.lane.name not in self._leaving]

    async def grow(self, lanes: int, *, place_within_s: float) -> bool:
        """Add lanes, all at the same time. Whether all were added."""
        added = await asyncio.gather(*(self.add(place_within_s=place_within_s) for _ in range(lanes)))
        return all(added)

    async def add(self, *, place_within_s: float) -> bool:
        """Add a lane. False: it could not be added, its process has ended and its request is withdrawn."""
        name = self._new_name()
        with self._changing():
            try:
                await self.pool.add(await self._start(name, place_within_s))
            except Exception as error:  # nothing that a new lane does may end the run
                self._emit("lane_not_added", worker=name, cause=f"{type(error).__name__}: {error}"[:500])
                return False
        return True

    async def leave(self, name: str, *, within_s: float) -> bool:
        """Let a lane leave in good order. False: it is the last one, or not in the pool."""
        if name in self._leaving:
            return False
        with self._changing():
            self._leaving.add(name)
            try:
                with suppress(ValueError):
                    await self.pool.remove(name, within_s=within_s)
                    return True
            finally:
                self._leaving.discard(name)
        return False

    async def shrink(self, *, within_s: float) -> bool:
        """Let the lane leave that can best be spared: one that is being replaced, or else the youngest."""
        if not self.seats:
            return False
        down = [seat for seat in self.seats if not seat.lane.is_up]
        return await self.leave((down or self.seats)[-1].lane.name, within_s=within_s)

    def _new_name(self) -> str:
        # A name is never used twice: the ledger knows holders by their names.
        while any(lane.name == f"{self.name}-{self._next}" for lane in self.pool):
            self._next += 1
        self._next += 1
        return f"{self.name}-{self._next - 1}"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
