"""A worker's first start, which may hit a node that is gone without anybody knowing it yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from solon.errors import WorkerLostError

START_TRIES = 3
"""Processes that are started for a worker at most."""


class Startable(Protocol):
    """A process that is there and not started yet."""

    name: str

    async def start(self, *arguments: Any) -> Any:
        """Raises WorkerLostError when it died or its answer was lost, and whatever its own code raises."""
        ...

    def replace(self) -> None:
        """Another process in its place."""
        ...


async def start(worker: Startable, *arguments: Any, tell: Callable[..., None]) -> Any:
    """What its start returns. Raises the last WorkerLostError when `START_TRIES` processes were lost."""
    for _ in range(START_TRIES - 1):
        try:
            return await worker.start(*arguments)
        except WorkerLostError as error:
            tell("worker_lost", worker=worker.name, cause=str(error))
            worker.replace()
    return await worker.start(*arguments)
