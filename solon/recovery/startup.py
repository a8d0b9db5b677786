"""A worker's first start, which may be placed on a dead node before the cluster notices that it is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from solon.errors import CallLostError, WorkerLostError

START_TRIES = 3
"""Number of processes of a worker that may die while they start."""
PAUSES_S = (1.0, 5.0, 10.0)
"""Seconds before a process that cannot be reached is replaced: a cluster takes some time to notice that a node is
dead, and places workers on it until then."""


class Startable(Protocol):
    """A process that exists but has not started its work."""

    name: str

    async def placed(self) -> None:
        """Returns when the process has a place on a node. Raises WorkerLostError."""
        ...

    async def start(self, *arguments: Any) -> Any:
        """Raises WorkerLostError when the process died or its answer was lost, and any error of its own code."""
        ...

    def replace(self) -> None:
        """Replace the process by another one."""
        ...


async def start(
    worker: Startable,
    *arguments: Any,
    emit: Callable[..., None],
    waits: Callable[[], None] = lambda: None,
    placed: Callable[[], None] = lambda: None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Any:
    """The result of the worker's start. waits: called when a process waits for a place on a node. placed: called when
    it has one.

    Raises the last WorkerLostError when `START_TRIES` processes died, or when more processes could not be reached than
    there are pauses.
    """
    deaths, pauses = 0, list(pauses_s)
    while True:
        try:
            waits()
            await worker.placed()
            placed()
            return await worker.start(*arguments)
        except CallLostError as error:
            if not pauses:
                raise
            emit("worker_lost", worker=worker.name, cause=str(error))
            await asyncio.sleep(pauses.pop(0))
        except WorkerLostError as error:
            deaths += 1
            if deaths == START_TRIES:
                raise
            emit("worker_lost", worker=worker.name, cause=str(error))
        worker.replace()
