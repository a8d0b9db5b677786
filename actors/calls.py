"""What the shells share: a worker process that can be replaced, and errors that are raised here as they were there."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray

from solon.errors import CallLostError, ForeignCodeError, PayloadLostError, RunFailedError, WorkerLostError

T = TypeVar("T")

Spawn = Callable[[int], Any]
"""Makes an actor; the number says how many there were before it. Two of them never have the same name."""

NOT_IMPORTED = "failed to import on the worker"
"""Ray's words for an actor whose module is not found, or raises."""

_RAISED = re.compile(r"[\w.]+(Error|Exception): ")

RAY_IS_GONE = threading.Event()
"""Set when Ray's own processes are gone (cluster.ray_session.watch). A later call into Ray may hang, or end this
process without a message."""

OPEN_TIMEOUT_S = 60.0
"""Fetching a payload from another node takes no longer, unless that node is gone."""

_DEAD = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
)


class RemoteWorker:
    """A worker in an actor: start it, call it, replace it. The base of all remotes."""

    def __init__(self, spawn: Spawn, *, name: str) -> None:
        self.name = name
        self._spawn = spawn
        self._made = 1
        self.actor = spawn(0)

    async def start(self, *arguments: Any) -> Any:
        """What the worker's own `start` returns. Raises WorkerLostError, and whatever its code raises."""
        return await self.ask("start", *arguments)

    def replace(self) -> None:
        """Another process in place of this one, which is not started yet. The old one is killed first."""
        if RAY_IS_GONE.is_set():
            raise RunFailedError("Ray is gone")
        self.end()
        self.actor = self._spawn(self._made)
        self._made += 1

    def end(self) -> None:
        """Kill the process."""
        if not RAY_IS_GONE.is_set():
            with suppress(ValueError, ray.exceptions.RayError):  # dead already
                ray.kill(self.actor, no_restart=True)

    async def placed(self) -> None:
        """Returns when the actor has a place on a node and its process is there. Raises WorkerLostError."""
        await call(self.actor.__ray_ready__.remote(), who=self.name)

    async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
        """See `solon.recovery.guard.Restartable`."""
        await self._another(placed)
        await self.start()

    async def heartbeat(self) -> float:
        """Seconds for which the worker has had work without progress. Raises WorkerLostError; may never return."""
        stalled_s: float = await self.ask("heartbeat")
        return stalled_s

    async def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The result of one of the actor's methods."""
        return await call(getattr(self.actor, method).remote(*arguments, **named), who=self.name)

    async def ask_parts(self, method: str, parts: int, *arguments: Any) -> tuple[Any, ...]:
        """The first results of a method that returns several, and a reference to the last one, which stays where it
        was made."""
        *first, last = getattr(self.actor, method).options(num_returns=parts).remote(*arguments)
        return *[await call(reference, who=self.name) for reference in first], [last]

    async def _another(self, placed: Callable[[], None]) -> None:
        self.replace()
        await self.placed()
        placed()


def open_payload(payload_ref: list[ray.ObjectRef]) -> Any:
    """The payload in a box; fetches it when it lies on another node. Raises PayloadLostError."""
    if RAY_IS_GONE.is_set():
        raise PayloadLostError("a payload is lost: Ray is gone")
    try:
        return _get(payload_ref[0])
    except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError, *_DEAD) as error:
        raise PayloadLostError(f"a payload is lost: {_first_line(error)}") from None


def _get(reference: ray.ObjectRef) -> Any:
    while True:
        began = time.monotonic()
        try:
            return ray.get(reference, timeout=OPEN_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() - began < 1.5 * OPEN_TIMEOUT_S:
                raise
            # Much longer than was asked for: this process was stopped, and did not wait for the payload.


def put_payload(payload: Any) -> list[ray.ObjectRef]:
    """A box with a payload that this process owns."""
    return [ray.put(payload)]


async def is_there(payload_ref: list[ray.ObjectRef]) -> bool:
    """Whether a payload can still be read. One that another node keeps is not fetched for that."""
    return await asyncio.to_thread(_is_there, payload_ref)


def _is_there(payload_ref: list[ray.ObjectRef]) -> bool:
    ready, _ = ray.wait(payload_ref, timeout=OPEN_TIMEOUT_S, fetch_local=False)
    if not ready:
        return False
    here = ray.get_runtime_context().get_node_id()
    places = ray.experimental.get_object_locations(payload_ref)[payload_ref[0]]["node_ids"]
    if places and here not in places:
        return True
    # Small, on this node, or lost: of a lost payload Ray keeps an error on this node, which only a read tells apart.
    try:
        open_payload(payload_ref)
    except PayloadLostError:
        return False
    return True


async def call(result: Awaitable[T], *, who: str) -> T:
    """Await a remote result. An error of the worker's own code is raised as it was there, a dead worker as
    WorkerLostError, a connection that broke as CallLostError, an argument that is gone as PayloadLostError."""
    try:
        return await result
    except ray.exceptions.ObjectLostError as error:
        raise PayloadLostError(f"{who}: a payload is lost: {_first_line(error)}") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        # What died here is not the worker that was asked, or the error would not be a task's: an argument was on its
        # way from a worker that died before it was complete.
        if isinstance(cause, (ray.exceptions.ObjectLostError, *_DEAD)):
            raise PayloadLostError(f"{who}: a payload is lost: {_first_line(cause)}") from None
        if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        raise
    except ray.exceptions.ActorUnavailableError as error:  # a dead actor's is another subclass of RayActorError
        raise CallLostError(f"{who} could not be reached: {_first_line(error)}") from None
    except _DEAD as error:
        if NOT_IMPORTED in str(error):
            # The text holds the traceback there; the last error in it is what the import raised.
            lines = [line.strip() for line in str(error).splitlines()]
            causes = [line for line in lines if _RAISED.match(line) and NOT_IMPORTED not in line]
            cause = causes[-1][:300] if causes else "look at its log in the Ray dashboard"
            raise ForeignCodeError(f"{who} could not import Solon's code on its machine: {cause}") from None
        raise WorkerLostError(f"{who} died: {_first_line(error)}; its log is in the Ray dashboard") from None
    except ray.exceptions.RaySystemError as error:
        raise RunFailedError(f"{who}: Ray itself failed: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] if lines else type(error).__name__
