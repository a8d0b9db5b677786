"""The limits of a run as a Ray actor: every process calls it before it calls an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from actors.calls import call
from solon.errors import WorkerLostError
from solon.feedback.spending.limiter import AsyncLimits
from solon.feedback.spending.limits import Bill, Permit, Spend, Want

RETRIES = 10
"""Approximate seconds that a replacement may take."""


class RemoteLimits:
    """A `LimitsPort` in another process. Ray replaces a dead one, which reads its spend file again; one that stays
    unreachable raises RunFailedError: no request is made without limits.

    limiter = Limiter(RemoteLimits(LimitsActor.remote(config)), config)
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> Spend:
        result: Spend = await self._call("start")
        return result

    async def acquire(self, wants: Sequence[Want]) -> list[Permit]:
        result: list[Permit] = await self._call("acquire", list(wants))
        return result

    async def settle(self, bills: Sequence[Bill]) -> None:
        await self._call("settle", list(bills))

    async def hold(self, seconds: float) -> None:
        await self._call("hold", seconds)

    async def spend(self) -> Spend:
        result: Spend = await self._call("spend")
        return result

    async def close(self) -> Spend:
        result: Spend = await self._call("close")
        return result

    async def _call(self, method: str, *arguments: Any) -> Any:
        for _ in range(RETRIES):
            try:
                return await call(getattr(self._actor, method).remote(*arguments), who="the limiter")
            except WorkerLostError:
                await asyncio.sleep(1)
        return await call(getattr(self._actor, method).remote(*arguments), who="the limiter")


LimitsActor = ray.remote(num_cpus=0, max_restarts=5, max_task_retries=0)(AsyncLimits)
