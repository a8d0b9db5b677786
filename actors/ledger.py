"""The ledger as a Ray actor, and the port through which the loop talks to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from actors.calls import call
from solon.async_ledger import AsyncLedger, Transition
from solon.ledger import Grant, Lease, Work


class RemoteLedger:
    """A `LedgerPort` in another process.

    Transitions that come while a call is under way leave together in the next one: a remote call costs
    milliseconds whatever it carries, so throughput grows with load instead of queueing.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._outbox: list[tuple[Transition, asyncio.Future[bool]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def apply(self, transitions: Sequence[Transition]) -> list[bool]:
        loop = asyncio.get_running_loop()
        mine = [(transition, loop.create_future()) for transition in transitions]
        self._outbox += mine
        if self._sender is None or self._sender.done():
            self._sender = asyncio.ensure_future(self._send())
        return list(await asyncio.gather(*(future for _, future in mine)))

    async def _send(self) -> None:
        while self._outbox:
            batch, self._outbox = self._outbox, []
            try:
                outcomes = await self._call("apply", [transition for transition, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)

    async def reserve(self, limit: int) -> list[Grant]:
        result: list[Grant] = await self._call("reserve", limit)
        return result

    async def next_generated(self, limit: int) -> list[Work]:
        result: list[Work] = await self._call("next_generated", limit)
        return result

    async def lease(self, step: int) -> Lease | None:
        result: Lease | None = await self._call("lease", step)
        return result

    async def commit(self, step: int, token: int) -> bool:
        result: bool = await self._call("commit", step, token)
        return result

    async def abort(self, step: int, token: int) -> bool:
        result: bool = await self._call("abort", step, token)
        return result

    async def publish(self, version: int) -> bool:
        result: bool = await self._call("publish", version)
        return result

    async def close(self) -> list[int]:
        result: list[int] = await self._call("close")
        return result

    async def counts(self) -> dict[str, int]:
        result: dict[str, int] = await self._call("counts")
        return result

    async def dropped(self) -> dict[str, int]:
        result: dict[str, int] = await self._call("dropped")
        return result

    async def drain_events(self) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = await self._call("drain_events")
        return result

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await call(getattr(self._actor, method).remote(*arguments), who="the ledger")


LedgerActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(AsyncLedger)
