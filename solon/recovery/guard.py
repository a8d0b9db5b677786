"""Workers that die or hang are replaced, until that happens too often. Plain asyncio; Ray is behind `Restartable`.

    guard = Guard(worker, config, tell=observer.event, rejoin=lambda: publication.join(lane))
    guard.start()                                   # beats: a worker that hangs is found without being asked anything
    await guard.ready()                             # waits while it is being replaced
    result = await guard.during(worker.label(work)) # raises WorkerLostError as soon as it is given up

A worker is up, down (being replaced) or given up. Whoever notices a loss says so with `lost`; the first one starts
the recovery, all calls that wait for the lost worker end with WorkerLostError, and the work they held goes back to the
ledger. A recovered worker is up only after `rejoin`: an engine holds the current attested weights by then.

A call whose answer did not arrive (CallLostError) is no loss yet: the worker stays if it gives a sign of life and its
calls may be made twice. To the caller it is a loss: what was asked is asked again, of this worker or another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from solon.clock import Clock
from solon.errors import CallLostError, RunFailedError, WorkerLostError
from solon.recovery.restarts import Lately, Restarts, SpentError
from solon.recovery.start_limit import StartLimit

T = TypeVar("T")

LOST_CALLS = 3
"""Times that answers may fail to arrive within `window_s`; a worker behind such a line is replaced."""


class RecoveryConfig(BaseModel):
    """When a worker counts as lost, and how often it is replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_restarts: int = Field(5, ge=0)
    """Replacements of one worker within `window_s`, or in a row without a single answer in between; one more ends the
    run with the cause."""
    window_s: float = Field(600, gt=0)
    backoff_s: float = Field(1, ge=0)
    """Pause before the second replacement within the window; it doubles with each further one."""
    restart_timeout_s: float = Field(600, gt=0)
    """A worker that has a place on a node must have its model loaded by then."""
    node_timeout_s: float = Field(900, gt=0)
    """A worker must have a place on a node by then: on a cluster that grows, a node is started and pulls its image."""
    beat_every_s: float = Field(5, gt=0)
    """Pause between two signs of life."""
    beat_timeout_s: float = Field(30, gt=0)
    """A worker that does not answer by then is killed and replaced."""
    stall_s: float = Field(600, gt=0)
    """An engine with work that has not moved for so long is replaced; a run without progress for so long says who
    waits for whom."""
    salvage_every_s: float = Field(2, ge=0)
    """Pause between two looks at how far long answers have come: what an engine had written by then is gone on with by
    another when it is lost. 0: never."""
    step_timeout_s: float = Field(7200, gt=0)
    """A learner that needs longer for one step is replaced."""
    grace_s: float = Field(20, ge=0)
    """When a run is stopped: what is being generated or labelled may take so long to end; the rest is generated again
    when the run goes on."""
    damaged_records: Literal["continue", "refuse"] = "continue"
    """What `--resume` does when files that a run only adds to (metrics, events, rollouts, labels) were cut or edited
    since the checkpoint: it says so and continues, for nothing is trained from them, or it refuses."""


def start_limit(config: RecoveryConfig, clock: Clock) -> StartLimit:
    """How long one process may take to start."""
    return StartLimit(node_timeout_s=config.node_timeout_s, restart_timeout_s=config.restart_timeout_s, clock=clock)


class Restartable(Protocol):
    """A process that can be replaced."""

    name: str

    async def restart(self, placed: Callable[[], None]) -> None:
        """End what is left of it, begin another and wait until that is ready; `placed` is called when it has a place on
        a node. Raises WorkerLostError."""
        ...

    async def heartbeat(self) -> float:
        """Seconds for which it has had work without getting on. Raises WorkerLostError; may never return."""
        ...


class Guard:
    """One worker's state, and its replacement."""

    def __init__(
        self,
        worker: Restartable,
        config: RecoveryConfig,
        *,
        emit: Callable[..., None] = lambda name, **fields: None,
        rejoin: Callable[[], Awaitable[None]] | None = None,
        on_down: Callable[[], None] = lambda: None,
        spare: Callable[[], bool] = lambda: False,
        repeatable: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """rejoin: what a replacement must do before it is up. on_down: called when the worker is lost. spare: whether
        the run can continue without it, asked when the restarts are spent. repeatable: whether a call may be made twice
        to the same worker. clock: one for all guards of a run."""
        self._worker = worker
        self._config = config
        self.emit = emit
        self.rejoin = rejoin
        self.on_down = on_down
        self.spare = spare
        self._repeatable = repeatable
        self._clock = clock or Clock()
        self._up = asyncio.Event()
        self._up.set()
        self._life: asyncio.Future[None] | None = None
        self._restarts = Restarts(
            most=config.max_restarts, window_s=config.window_s, backoff_s=config.backoff_s, clock=self._clock.monotonic
        )
        self._lost_calls = Lately(config.window_s, self._clock.monotonic)
        self._doubt: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._failure: Exception | None = None
        self.given_up = False
        """It is not replaced any more, and the run goes on without it."""
        self.recovered = 0
        self.incarnation = 0
        """Which of the workers that there were is meant: a late error of one must not end the next."""

    @property
    def name(self) -> str:
        return self._worker.name

    @property
    def is_up(self) -> bool:
        return self._up.is_set() and self._failure is None and not self.given_up

    def start(self) -> None:
        """Begin to ask for signs of life."""
        self._begin(self._watch())

    async def ready(self) -> bool:
        """Waits until the worker is up. False: it never will be, and the run goes on without it. Raises what ended it
        and with it the run."""
        await self._up.wait()
        if self._failure is not None:
            raise self._failure
        return not self.given_up

    async def during(self, call: Awaitable[T], *, timeout_s: float | None = None) -> T:
        """The result of a call to the worker. Raises WorkerLostError when it is given up meanwhile or takes longer."""
        result = await self._during(call, timeout_s=timeout_s)
        self._restarts.answered()
        return result

    async def _during(self, call: Awaitable[T], *, timeout_s: float | None = None) -> T:
        task = asyncio.ensure_future(call)
        if not self.is_up:
            task.cancel()
            raise WorkerLostError(f"{self.name} is being replaced")
        life, incarnation = self._lifetime(), self.incarnation
        try:
            waiting: set[asyncio.Future[Any]] = {task, life}
            await self._clock.wait(waiting, timeout_s=timeout_s)
            if task.done():
                return task.result()
            if not life.done():
                raise WorkerLostError(f"{self.name} did not answer within {timeout_s:.0f} s")
            raise WorkerLostError(f"{self.name} was lost")
        except WorkerLostError as error:
            if isinstance(error, CallLostError) and self._repeatable:
                await self._ask_after(error, incarnation)
            else:
                self.lost(error, incarnation)
            raise
        finally:
            task.cancel()

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that may be made again to a replacement, however often it takes. Raises GivenUpError
        when there is none."""
        while True:
            if not await self.ready():
                raise GivenUpError(f"{self.name} was given up")
            with suppress(WorkerLostError):
                return await self.during(call())

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """This incarnation of the worker is gone. Starts its replacement, unless that is under way or done."""
        if incarnation != self.incarnation or self._closed or not self.is_up:
            return
        self.incarnation += 1
        self._lost_calls = Lately(self._config.window_s, self._clock.monotonic)
        self._up.clear()
        life, self._life = self._life, None
        if life is not None and not life.done():
            life.set_result(None)
        self.on_down()
        self._begin(self._recover(error))

    def status(self) -> dict[str, Any]:
        """For people: up or not, and how often it was replaced."""
        state = "given up" if self.given_up or self._failure else "up" if self._up.is_set() else "being replaced"
        return {"worker": self.name, "state": state, "recovered": self.recovered}

    async def close(self) -> None:
        """No more watching, no more replacing."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _lifetime(self) -> asyncio.Future[None]:
        """Done when the worker that is up now is lost."""
        if self._life is None:
            self._life = asyncio.get_running_loop().create_future()
        return self._life

    async def _ask_after(self, error: CallLostError, incarnation: int) -> None:
        """Returns when the worker has given a sign of life, or counts as lost. Calls lost together ask once."""
        if self._doubt is None or self._doubt.done():
            self._doubt = self._begin(self._doubted(error, incarnation))
        await asyncio.wait({self._doubt})

    async def _doubted(self, error: CallLostError, incarnation: int) -> None:
        self._lost_calls.note()
        try:
            if self._lost_calls.count() > LOST_CALLS:
                raise error
            await self._clock.within(self._beat(), self._config.beat_timeout_s)
        except (TimeoutError, WorkerLostError):
            self.lost(error, incarnation)
        else:
            self.emit("call_lost", worker=self.name, cause=str(error))

    async def _beat(self) -> float:
        try:
            return await self._worker.heartbeat()
        except CallLostError:  # one lost answer says nothing of the worker
            return await self._worker.heartbeat()

    async def _recover(self, error: WorkerLostError) -> None:
        began = self._clock.monotonic()
        self.emit("worker_lost", worker=self.name, cause=str(error))
        self._restarts.lost()
        try:
            while True:
                if not isinstance(error, _NoPlaceError):  # to look for a place again is no restart
                    self._restarts.spend(self.name, error)
                await asyncio.sleep(self._restarts.pause_s())
                try:
                    await self._replace()
                    break
                except WorkerLostError as again:
                    error = again
                    self.emit("restart_failed", worker=self.name, cause=str(again))
                    # Others do its work while it waits for a node, however long; without it, the run would wait.
                    if isinstance(again, _NoPlaceError) and not self.spare():
                        raise SpentError(str(again)) from None
            self.recovered += 1
            self._restarts.up()
            self.emit("worker_recovered", worker=self.name, downtime_s=round(self._clock.monotonic() - began, 3))
        except SpentError as end:
            if self.spare():
                self.given_up = True
                self.emit("worker_given_up", worker=self.name, cause=str(end))
            else:
                self._failure = RunFailedError(str(end))
        except Exception as failure:
            self._failure = failure
        finally:
            self._up.set()

    async def _replace(self) -> None:
        limit = start_limit(self._config, self._clock)
        try:
            await limit.within(self._worker.restart(limit.placed))
        except TimeoutError:
            kind = WorkerLostError if limit.has_place else _NoPlaceError
            raise kind(f"a new {self.name} {limit.missed}") from None
        except WorkerLostError:
            raise
        except Exception as error:
            # The first one started, so this may pass: the memory of the one that is ended is not free at once.
            raise WorkerLostError(f"a new {self.name} did not start: {type(error).__name__}: {error}") from error
        if self.rejoin is not None:
            await self._watched(self.rejoin())

    async def _watched(self, work: Awaitable[None]) -> None:
        """Wait for work of a replacement that is not up yet, for as long as it gives signs of life."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=self._config.beat_every_s))[0]:
                await self._clock.within(self._beat(), self._config.beat_timeout_s)
            task.result()
        except TimeoutError:
            raise WorkerLostError(f"a new {self.name} does not answer") from None
        finally:
            task.cancel()

    async def _watch(self) -> None:
        config = self._config
        while True:
            await asyncio.sleep(config.beat_every_s)
            if not self.is_up:
                continue
            with suppress(WorkerLostError):
                incarnation = self.incarnation
                stalled_s = await self._during(self._beat(), timeout_s=config.beat_timeout_s)
                stalled_s = self._clock.charged(stalled_s)
                if stalled_s > config.stall_s:
                    error = WorkerLostError(f"{self.name} has had work for {stalled_s:.0f} s without getting on")
                    self.lost(error, incarnation)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def mutual_failover(guards: Sequence[Guard]) -> None:
    """Workers that do the same: the run goes on while one of them is up."""
    for guard in guards:
        guard.spare = partial(_any_other_is_up, guard, guards)


def _any_other_is_up(one: Guard, guards: Sequence[Guard]) -> bool:
    return any(guard.is_up for guard in guards if guard is not one)


class GivenUpError(RunFailedError):
    """The worker is not replaced any more; another of its kind may be up."""


class _NoPlaceError(WorkerLostError):
    """No node had room for it in time."""
