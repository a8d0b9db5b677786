"""Pools: lanes that do the same work, whose number may change while the loop runs.

    await pool.add(lane)                        # returns when the lane holds the current weights and takes work
    await pool.remove("rollout-1", within_s=60) # returns when it has finished or returned its work, and has ended

A pool owns its lanes, the stage task of each lane and, through the lanes, their guards. Scaling code calls these two
methods; the loop needs no other change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from solon.pipeline.usage import Usage, UsageMeter
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
        self._meter = UsageMeter()
        self.task: asyncio.Task[None] | None = None
        """The lane's stage task, while the loop runs."""

    @property
    def lane(self) -> L_co:
        return self._lane

    @property
    def takes_work(self) -> bool:
        """Whether the lane is up and not leaving."""
        return self._lane.is_up and not self._is_leaving

    @property
    def is_active(self) -> bool:
        """Whether the lane takes work, or will again once it is replaced."""
        return not self._is_leaving and (self.task is None or not self.task.done())

    @property
    def num_held(self) -> int:
        """Number of groups that the lane has and has not finished."""
        return self._lane.groups_at_once - self._free

    @property
    def usage(self) -> Usage:
        """What the lane did in this pool so far."""
        return self._meter.usage(_now())

    async def room(self) -> int:
        """How many more groups it may take. Waits for a free place, and while the lane is being replaced. 0: it takes
        no more, because it is leaving or was given up. Raises the error that ended the run."""
        if not self._changed.is_set():
            await self._changed.wait()
        if self._is_leaving or not await self._lane.ready():
            return 0
        return 0 if self._is_leaving else self._free

    def take(self, groups: int) -> None:
        """Count groups given to the lane."""
        self._free -= groups
        self._meter.hold(self._lane.groups_at_once - self._free, _now())
        self._look()

    def give(self, groups: int, *, finished: bool = True) -> None:
        """Count groups that the lane finished or, with `finished` False, lost."""
        self._free += groups
        self._meter.hold(self._lane.groups_at_once - self._free, _now(), finished=groups if finished else 0)
        self._look()

    def leave(self) -> None:
        """Take no more work."""
        self._is_leaving = True
        self._look()

    def _look(self) -> None:
        if self._free > 0 or self._is_leaving:
            self._changed.set()
        else:
            self._changed.clear()


def _now() -> float:
    return asyncio.get_running_loop().time()


class Entry(Protocol[L_contra]):
    """The check before a lane takes work: `solon.pipeline.publication.Publication` for rollout engines."""

    async def join(self, lane: L_contra, /) -> None:
        """Admit the lane, at first or after a loss. Raises the reason for refusing it."""
        ...

    def leave(self, lane: L_contra, /) -> None:
        """The lane is being replaced."""
        ...

    def dismiss(self, lane: L_contra, /) -> None:
        """The lane does not come back."""
        ...


class StagePool(Protocol[L_co]):
    """A pool, as the loop sees it."""

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
    """Iterating yields the lanes in the pool at that moment."""

    def __init__(self, lanes: Iterable[L], *, entry: Entry[L] | None = None) -> None:
        """lanes: the initial lanes; their creator has already passed them through the entry."""
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

    @property
    def seats(self) -> list[Seat[L]]:
        """The places of the lanes in the pool at this moment."""
        return list(self._seats.values())

    def __contains__(self, lane: object) -> bool:
        return any(seat.lane is lane for seat in self._seats.values())

    async def add(self, lane: L) -> None:
        """Let a lane whose process has started join. Returns when it takes work.

        Raises the reason for refusing it (WorkerLostError, AttestationError); its process has then ended, and the pool
        is unchanged. Raises ValueError when a lane of this name exists.
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
        """Drain a lane: it takes no new work and ends when its work is finished, or after `within_s`.

        Returns the number of groups that it returned unfinished: other lanes continue them from the saved tokens.
        Raises ValueError when there is no such lane or no other lane to do the work.
        """
        seat = self._seats.get(name)
        if seat is None:
            raise ValueError(f"the pool has no lane {name!r}; it has {', '.join(self._seats)}")
        if not any(other.is_active for other in self._seats.values() if other is not seat):
            raise ValueError(f"{name} is the last lane of its pool; add another one first")
        seat.leave()
        self._wake()
        # A lane that is being replaced holds no work: there is nothing to wait for.
        if seat.task is not None and seat.lane.is_up:
            await asyncio.wait({seat.task}, timeout=within_s)
        returned = seat.num_held
        if self.entry is not None:
            self.entry.dismiss(seat.lane)
        await seat.lane.retire()
        if seat.task is not None:
            await asyncio.wait({seat.task})
        if self._seats.get(name) is seat:  # another call may have removed it meanwhile
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
        """Run `stage(seat)` for every lane, including those that join later. Returns when `close` was called and all
        stages have ended. name: of the stage. wake: makes lanes that wait for work check again."""

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
