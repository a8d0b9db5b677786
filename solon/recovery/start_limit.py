"""How long a worker may take to start: to get a place on a node, which may have to boot, then to load its model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from solon.clock import Clock

T = TypeVar("T")


class StartLimit:
    """A deadline in two parts.

    limit = StartLimit(node_timeout_s=900, restart_timeout_s=600)
    await limit.within(worker.restart(limit.placed))    # raises TimeoutError; `missed` names the part that was late
    """

    def __init__(self, *, node_timeout_s: float, restart_timeout_s: float, clock: Clock | None = None) -> None:
        """clock: measures the deadline."""
        self._node_timeout_s = node_timeout_s
        self._restart_timeout_s = restart_timeout_s
        self._clock = clock or Clock()
        self._changed = asyncio.Event()
        self.has_place = False

    async def within(self, work: Awaitable[T]) -> T:
        """The result of the work. Raises TimeoutError and cancels it when a part takes too long."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                limit_s = self._restart_timeout_s if self.has_place else self._node_timeout_s
                try:
                    await self._clock.wait({task, changed}, timeout_s=limit_s)
                finally:
                    changed.cancel()
                if task.done():
                    return task.result()
                if not self._changed.is_set():
                    break
        finally:
            task.cancel()
        await asyncio.wait({task})
        raise TimeoutError

    def waits(self) -> None:
        """Another process waits for a place."""
        self.has_place = False
        self._changed.set()

    def placed(self) -> None:
        """It has one."""
        self.has_place = True
        self._changed.set()

    @property
    def missed(self) -> str:
        """What did not happen in time and how to change that."""
        if self.has_place:
            return (
                f"was not ready within recovery.restart_timeout_s = {self._restart_timeout_s:g} s of getting its "
                "place; raise it for large models"
            )
        return (
            f"was not placed on a node within recovery.node_timeout_s = {self._node_timeout_s:g} s; look for free "
            "resources with `ray status`"
        )
