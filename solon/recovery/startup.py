"""A worker's first start, which may be placed on a node that is gone before the cluster has noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from solon.errors import CallLostError, WorkerLostError

START_TRIES = 3
"""Processes of a worker that may die while they start."""
PAUSES_S = (1.0, 5.0, 10.0)
"""Seconds before another process takes the place of one that cannot be reached: a cluster takes some time to notice
that a node is gone, and places workers on it until then."""


class Startable(Protocol):
    """A process that exists and has not started its work."""

    name: str

    async def placed(self) -> None:
        """Returns when the process has a place on a node. Raises WorkerLostError."""
        ...

    async def start(self, *arguments: Any) -> Any:
        """Raises WorkerLostError when it died or its answer was lost, and whatever its own code raises."""
        ...

    def replace(self) -> None:
        """Another process in its place."""
        ...


async def start(
    worker: Startable,
    *arguments: Any,
    emit: Callable[..., None],
    waits: Callable[[], None] = lambda: None,
    placed: Callable[[], None] = lambda: None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Any:
    """What its start returns. waits: called when a process waits for a place on a node. placed: when it has one.

    Raises the last WorkerLostError when `START_TRIES` processes died, or one more than there are pauses could not be
    reached.
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
