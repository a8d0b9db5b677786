"""Pools: lanes that do the same work, whose number may change while the loop runs.

    await pool.add(lane)                        # returns when the lane holds the current weights and takes work
    await pool.remove("rollout-1", within_s=60) # returns when it has finished or handed back its work, and has ended

A pool owns its lanes, the stage task of each and, through them, their guards. Who decides how many lanes there are
calls these two methods; the loop needs no other change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from solon.protocols import Lane

L = TypeVar("L", bound=Lane)
L_co = TypeVar("L_co", bound=Lane, covariant=True)
L_contra = TypeVar("L_contra", contravariant=True)


class Seat(Generic[L_co]):
    """A lane's place in a pool: how many groups it has room for, and whether it takes more."""

    def __init__(self, lane: L_co) -> None:
        self._lane = lane
        self._free = lane.groups_at_once
        self._changed = asyncio.Event()
        self._changed.set()
        self._is_leaving = False
        self.task: asyncio.Task[None] | None = None
        """Its stage, while the loop runs."""

    @property
    def lane(self) -> L_co:
        return self._lane

    @property
    def takes_work(self) -> bool:
        """It is up and does not leave."""
        return self._lane.is_up and not self._is_leaving

    @property
    def is_active(self) -> bool:
        """It takes work, or will again once it is replaced."""
        return not self._is_leaving and (self.task is None or not self.task.done())

    @property
    def num_held(self) -> int:
        """Groups that it has and has not finished."""
        return self._lane.groups_at_once - self._free

    async def room(self) -> int:
        """How many more groups it may take. Waits for a free place, and for the lane while it is being replaced. 0: it
        takes no more, for it leaves or was given up. Raises what ended the run with it."""
        await self._changed.wait()
        if self._is_leaving or not await self._lane.ready():
            return 0
        return 0 if self._is_leaving else self._free

    def take(self, groups: int) -> None:
        """It was given so many groups."""
        self._free -= groups
        self._look()

    def give(self, groups: int) -> None:
        """It has finished so many groups, or lost them."""
        self._free += groups
        self._look()

    def leave(self) -> None:
        """It takes no more."""
        self._is_leaving = True
        self._look()

    def _look(self) -> None:
        if self._free > 0 or self._is_leaving:
            self._changed.set()
        else:
            self._changed.clear()


class Entry(Protocol[L_contra]):
    """What a lane must pass before it takes work: `solon.pipeline.publication.Publication` for rollout engines."""

    async def join(self, lane: L_contra, /) -> None:
        """Let it in, or in again after a loss. Raises what keeps it out."""
        ...

    def leave(self, lane: L_contra, /) -> None:
        """It is being replaced."""
        ...

    def dismiss(self, lane: L_contra, /) -> None:
        """It does not come back."""
        ...


class StagePool(Protocol[L_co]):
    """What the loop needs of a pool."""

    async def run(
        self,
        stage: Callable[[Seat[L_co]], Coroutine[Any, Any, None]],
        *,
        name: str,
        wake: Callable[[], None],
        emit: Callable[..., None],
    ) -> None:
        """See `Pool.run`."""
        ...

    def close(self) -> None:
        """See `Pool.close`."""
        ...


class Pool(Collection[L]):
    """Iterating yields the lanes that are in it at that moment."""

    def __init__(self, lanes: Iterable[L], *, entry: Entry[L] | None = None) -> None:
        """lanes: those that the run starts with; who starts them brings them through the entry."""
        self.entry = entry
        self._seats: dict[str, Seat[L]] = {}
        self._joining: set[str] = set()
        self._begin: Callable[[Seat[L]], None] = lambda seat: None
        self._closed = asyncio.Event()
        self._wake: Callable[[], None] = lambda: None
        self._emit: Callable[..., None] = lambda name, **fields: None
        for lane in lanes:
            self._enlist(lane)
            self._seats[lane.name] = Seat(lane)

    def __iter__(self) -> Iterator[L]:
        return iter([seat.lane for seat in self._seats.values()])

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, lane: object) -> bool:
        return any(seat.lane is lane for seat in self._seats.values())

    async def add(self, lane: L) -> None:
        """Let a lane whose process has started join. Returns when it takes work.

        Raises what kept it out (WorkerLostError, AttestationError); its process has ended then, and the pool is as it
        was. Raises ValueError when there is a lane of this name.
        """
        if lane.name in self._seats or lane.name in self._joining:
            raise ValueError(f"the pool has a lane named {lane.name}; give the new one another name")
        self._joining.add(lane.name)
        try:
            self._enlist(lane)
            if self.entry is not None:
                await self.entry.join(lane)
        except BaseException:
            await lane.retire()
            raise
        finally:
            self._joining.discard(lane.name)
        seat = self._seats[lane.name] = Seat(lane)
        lane.watch()
        self._begin(seat)
        self._emit("lane_joined", worker=lane.name)

    async def remove(self, name: str, *, within_s: float = 60.0) -> int:
        """Drain a lane: it takes no new work and ends when it has finished what it holds, or after `within_s`.

        Returns how many groups it handed back unfinished: other lanes continue them, from the tokens that were saved.
        Raises ValueError when there is no such lane, or no other to do the work.
        """
        seat = self._seats.get(name)
        if seat is None:
            raise ValueError(f"the pool has no lane {name!r}; it has {', '.join(self._seats)}")
        if not any(other.is_active for other in self._seats.values() if other is not seat):
            raise ValueError(f"{name} is the last lane of its pool; add another one first")
        seat.leave()
        self._wake()
        # A lane that is being replaced holds nothing: there is nothing to wait for.
        if seat.task is not None and seat.lane.is_up:
            await asyncio.wait({seat.task}, timeout=within_s)
        returned = seat.num_held
        if self.entry is not None:
            self.entry.dismiss(seat.lane)
        await seat.lane.retire()
        if seat.task is not None:
            await asyncio.wait({seat.task})
        del self._seats[name]
        self._emit("lane_left", worker=name, returned=returned)
        return returned

    async def run(
        self,
        stage: Callable[[Seat[L]], Coroutine[Any, Any, None]],
        *,
        name: str,
        wake: Callable[[], None],
        emit: Callable[..., None],
    ) -> None:
        """Run `stage(seat)` for every lane, also for those that join later. Returns when `close` was called and all
        stages have ended. name: of the stage. wake: makes the lanes that wait for work look again."""

        def begin(seat: Seat[L]) -> None:
            if not self._closed.is_set():
                seat.task = tasks.create_task(stage(seat), name=f"{name} {seat.lane.name}")

        self._wake, self._emit = wake, emit
        self._closed.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._begin = begin
                for seat in self._seats.values():
                    begin(seat)
                await self._closed.wait()
        finally:
            self._begin = lambda seat: None
            for seat in self._seats.values():
                seat.task = None

    def close(self) -> None:
        """The loop ends: lanes that join from now on get no work."""
        self._closed.set()

    def _enlist(self, lane: L) -> None:
        lane.enlist(
            spare=partial(self._has_another, lane),
            rejoin=partial(self._rejoin, lane),
            on_down=partial(self._down, lane),
        )

    def _has_another(self, lane: L) -> bool:
        """Whether the run can do without this lane."""
        return any(seat.takes_work for seat in self._seats.values() if seat.lane is not lane)

    async def _rejoin(self, lane: L) -> None:
        if self.entry is not None:
            await self.entry.join(lane)

    def _down(self, lane: L) -> None:
        if self.entry is not None:
            self.entry.leave(lane)
