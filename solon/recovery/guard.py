"""Replaces a worker that dies or hangs, up to a limit. Plain asyncio; Ray is behind `Restartable`.

    guard = Guard(worker, config, emit=observer.event, rejoin=lambda: publication.join(lane))
    guard.start()                                   # heartbeats: detect a worker that hangs while no call is pending
    await guard.ready()                             # waits while the worker is being replaced
    result = await guard.call(worker.label(work))   # raises WorkerLostError as soon as the worker is given up

A worker is up, down (being replaced) or given up. The first call of `lost` starts the recovery. All calls pending at
the lost worker end with WorkerLostError, and their work goes back to the ledger. A replacement is up only after
`rejoin`: an engine then holds the current attested weights.

A call whose answer did not arrive (CallLostError) does not yet mean that the worker is lost: it is kept if it answers a
heartbeat and its calls may be repeated. The caller treats it as a loss: the request is sent again, to this worker or
another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from solon.clock import Clock
from solon.errors import CallLostError, RunFailedError, WorkerLeftError, WorkerLostError
from solon.recovery.config import RecoveryConfig as RecoveryConfig
from solon.recovery.config import start_limit as start_limit
from solon.recovery.restarts import Lately, Restarts, SpentError

T = TypeVar("T")

LOST_CALLS = 3
"""Number of answers that may be lost within `window_s`; after more, a worker with such a connection is replaced."""


class Restartable(Protocol):
    """A process that can be replaced."""

    name: str

    async def restart(self, placed: Callable[[], None]) -> None:
        """End the remaining process, start another one and wait until it is ready; `placed` is called when it is placed
        on a node. Raises WorkerLostError."""
        ...

    async def heartbeat(self) -> float:
        """Seconds for which it has had work without progress. Raises WorkerLostError; may never return."""
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
        """rejoin: awaited by a replacement before it is up. on_down: called when the worker is lost. spare: whether the
        run can continue without this worker, asked when no restarts are left. repeatable: whether a call may be sent
        twice to the same worker. clock: shared by all guards of a run."""
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
        self._closed = self._has_left = False
        self._failure: Exception | None = None
        self.given_up = False
        """It is no longer replaced, and the run continues without it."""
        self.recovered = 0
        self.incarnation = 0
        """Number of workers lost before the present one: a late error of an old worker must not end the new one."""

    @property
    def name(self) -> str:
        return self._worker.name

    @property
    def is_up(self) -> bool:
        return self._up.is_set() and self._failure is None and not self.given_up

    def start(self) -> None:
        """Start sending heartbeats."""
        self._begin(self._watch())

    async def ready(self) -> bool:
        """Waits until the worker is up. False: it was given up, and the run continues without it. Raises the error that
        ended the worker and the run."""
        await self._up.wait()
        if self._failure is not None:
            raise self._failure
        return not self.given_up

    async def call(self, call: Awaitable[T], *, timeout_s: float | None = None) -> T:
        """The result of a call to the worker. Raises WorkerLostError when it is given up first or takes longer."""
        result = await self._call(call, timeout_s=timeout_s)
        self._restarts.answered()
        return result

    async def _call(self, call: Awaitable[T], *, timeout_s: float | None = None) -> T:
        task = asyncio.ensure_future(call)
        if not self.is_up:
            task.cancel()
            raise self._gone("is being replaced")
        life, incarnation = self._lifetime(), self.incarnation
        try:
            waiting: set[asyncio.Future[Any]] = {task, life}
            await self._clock.wait(waiting, timeout_s=timeout_s)
            if task.done():
                return task.result()
            if not life.done():
                raise WorkerLostError(f"{self.name} did not answer within {timeout_s:.0f} s")
            raise self._gone("was lost")
        except WorkerLostError as error:
            if isinstance(error, CallLostError) and self._repeatable:
                await self._check_heartbeat(error, incarnation)
            else:
                self.lost(error, incarnation)
            raise
        finally:
            task.cancel()

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the worker, or a replacement, answers. Raises GivenUpError when the worker was given
        up."""
        while True:
            if not await self.ready():
                raise GivenUpError(f"{self.name} was given up")
            with suppress(WorkerLostError):
                return await self.call(call())

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """This incarnation of the worker is lost. Starts its replacement, unless that has been done."""
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
        """Whether it is up and how often it was replaced, for the status of a run."""
        state = "given up" if self.given_up or self._failure else "up" if self._up.is_set() else "being replaced"
        return {"worker": self.name, "state": state, "recovered": self.recovered}

    async def retire(self) -> None:
        """The worker leaves permanently: pending calls end with WorkerLeftError, and it is not replaced."""
        self._closed = self._has_left = self.given_up = True
        self._up.set()
        life, self._life = self._life, None
        if life is not None and not life.done():
            life.set_result(None)
        await self.close()

    async def close(self) -> None:
        """Stop heartbeats and replacements."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _gone(self, otherwise: str) -> WorkerLostError:
        """The error of calls to a worker that is not up."""
        if self._has_left:
            return WorkerLeftError(f"{self.name} left its pool")
        return WorkerLostError(f"{self.name} {otherwise}")

    def _lifetime(self) -> asyncio.Future[None]:
        """Done when the present worker is lost."""
        if self._life is None:
            self._life = asyncio.get_running_loop().create_future()
        return self._life

    async def _check_heartbeat(self, error: CallLostError, incarnation: int) -> None:
        """Returns when the worker has answered a heartbeat or counts as lost. Concurrent lost calls share one check."""
        if self._doubt is None or self._doubt.done():
            self._doubt = self._begin(self._await_heartbeat(error, incarnation))
        await asyncio.wait({self._doubt})

    async def _await_heartbeat(self, error: CallLostError, incarnation: int) -> None:
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
        except CallLostError:  # a single lost answer says nothing about the worker
            return await self._worker.heartbeat()

    async def _recover(self, error: WorkerLostError) -> None:
        began = self._clock.monotonic()
        self.emit("worker_lost", worker=self.name, cause=str(error))
        self._restarts.lost()
        try:
            while True:
                if not isinstance(error, _NoPlaceError):  # waiting for a place again is not a restart
                    self._restarts.spend(self.name, error)
                await asyncio.sleep(self._restarts.pause_s())
                try:
                    await self._replace()
                    break
                except WorkerLostError as again:
                    error = again
                    self.emit("restart_failed", worker=self.name, cause=str(again))
                    # Other workers do its work while it waits for a node; alone, the run would have to wait.
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
            # An earlier one started, so this may pass: the memory of an ended process is not freed at once.
            raise WorkerLostError(f"a new {self.name} did not start: {type(error).__name__}: {error}") from error
        if self.rejoin is not None:
            await self._watched(self.rejoin())

    async def _watched(self, work: Awaitable[None]) -> None:
        """Wait for a replacement that is not up yet, as long as it answers heartbeats."""
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
                stalled_s = await self._call(self._beat(), timeout_s=config.beat_timeout_s)
                stalled_s = self._clock.charged(stalled_s)
                if stalled_s > config.stall_s:
                    error = WorkerLostError(f"{self.name} has had work for {stalled_s:.0f} s without progress")
                    self.lost(error, incarnation)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class GivenUpError(RunFailedError):
    """The worker is no longer replaced; another worker of its pool may be up."""


class _NoPlaceError(WorkerLostError):
    """No node had room for the worker in time."""
