"""The base of all shells: a worker process that can be replaced, with its errors raised again in the caller."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray

from solon.errors import CallLostError, ForeignCodeError, PayloadLostError, RunFailedError, WorkerLostError

T = TypeVar("T")

Spawn = Callable[[int], Any]
"""Makes an actor; the number counts its predecessors, so that no two have the same name."""

NOT_IMPORTED = "failed to import on the worker"
"""Ray's message for an actor whose module is missing or fails to import."""

_RAISED = re.compile(r"[\w.]+(Error|Exception): ")

RAY_IS_GONE = threading.Event()
"""Set when Ray's own processes are gone (cluster.ray_session.watch). A later call into Ray may hang, or end this
process without a message."""

OPEN_TIMEOUT_S = 60.0
"""Upper bound for fetching a payload from another node, unless that node is gone."""

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
        """The result of the worker's own `start`. Raises WorkerLostError, and the errors of its code."""
        return await self.ask("start", *arguments)

    def replace(self) -> None:
        """Replace the process by a new one, not started yet. The old one is killed first."""
        if RAY_IS_GONE.is_set():
            raise RunFailedError("Ray is gone")
        self.end()
        self.actor = self._spawn(self._made)
        self._made += 1

    def end(self) -> None:
        """Kill the process."""
        if not RAY_IS_GONE.is_set():
            with suppress(ValueError, ray.exceptions.RayError):  # already dead
                ray.kill(self.actor, no_restart=True)

    async def placed(self) -> None:
        """Returns when the actor has a node and its process runs. Raises WorkerLostError."""
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
        was created."""
        *first, last = getattr(self.actor, method).options(num_returns=parts).remote(*arguments)
        return *[await call(reference, who=self.name) for reference in first], [last]

    async def ask_chunks(self, method: str, *arguments: Any) -> tuple[Any, list[ray.ObjectRef]]:
        """The last item of a generator method, and references to those before it, which stay where they were made and
        belong to this process."""
        stream = getattr(self.actor, method).options(num_returns="streaming").remote(*arguments)
        references = await call(_collected(stream), who=self.name)
        if not references:
            raise WorkerLostError(f"{self.name} ended {method} without a result")
        return await call(references[-1], who=self.name), references[:-1]

    async def _another(self, placed: Callable[[], None]) -> None:
        self.replace()
        await self.placed()
        placed()


async def _collected(stream: AsyncIterator[ray.ObjectRef]) -> list[ray.ObjectRef]:
    return [reference async for reference in stream]


def open_payload(payload_ref: list[ray.ObjectRef]) -> Any:
    """The payload in a box; fetches it from another node if necessary. Raises PayloadLostError."""
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
            # Much longer than the timeout: this process was stopped, and did not wait for the payload.


def put_payload(payload: Any) -> list[ray.ObjectRef]:
    """A box with a payload that this process owns."""
    return [ray.put(payload)]


async def is_there(payload_ref: list[ray.ObjectRef]) -> bool:
    """Whether a payload can still be read. A payload on another node is not fetched for this check."""
    return await asyncio.to_thread(_is_there, payload_ref)


def _is_there(payload_ref: list[ray.ObjectRef]) -> bool:
    ready, _ = ray.wait(payload_ref, timeout=OPEN_TIMEOUT_S, fetch_local=False)
    if not ready:
        return False
    here = ray.get_runtime_context().get_node_id()
    places = ray.experimental.get_object_locations(payload_ref)[payload_ref[0]]["node_ids"]
    if places and here not in places:
        return True
    # Small, local or lost: for a lost payload Ray keeps an error on this node, which only a read can distinguish.
    try:
        open_payload(payload_ref)
    except PayloadLostError:
        return False
    return True


async def call(result: Awaitable[T], *, who: str) -> T:
    """Await a remote result. Errors of the worker's own code are raised again, a dead worker raises WorkerLostError, a
    broken connection CallLostError, a lost argument PayloadLostError."""
    try:
        return await result
    except ray.exceptions.ObjectLostError as error:
        raise PayloadLostError(f"{who}: a payload is lost: {_first_line(error)}") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        # The called worker is alive, or the error would not come from a task: an argument was in transit from a worker
        # that died before it was complete.
        if isinstance(cause, (ray.exceptions.ObjectLostError, *_DEAD)):
            raise PayloadLostError(f"{who}: a payload is lost: {_first_line(cause)}") from None
        if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        raise
    except ray.exceptions.ActorUnavailableError as error:  # a dead actor's is another subclass of RayActorError
        raise CallLostError(f"{who} could not be reached: {_first_line(error)}") from None
    except _DEAD as error:
        if NOT_IMPORTED in str(error):
            # The text holds the remote traceback; its last error is the one that the import raised.
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
