"""A rollout engine as a Ray actor, and the lane that the loop sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from actors.calls import Process, Spawn, call
from solon.pipeline.rollout import RolloutWorker
from solon.protocols import Assignment, GenerationReport, PayloadRef
from solon.records import Group, LoadReceipt, Prompt, Salvage


class RolloutShell(RolloutWorker):
    """The worker, with its stream flattened: a report, then the group it is about; or what a group has gained."""

    async def stream(self, work: Sequence[Assignment]) -> AsyncIterator[GenerationReport | Group | Salvage]:
        async for item in self.generate(work):
            if isinstance(item, Salvage):
                yield item
                continue
            report, group = item
            yield report
            yield group

    def __repr__(self) -> str:
        return f"Rollout({self.name})"


class RemoteRollout:
    """An engine in an actor, which can be replaced."""

    def __init__(self, spawn: Spawn, *, name: str, groups_at_once: int) -> None:
        self._process = Process(spawn)
        self.name = name
        self.groups_at_once = groups_at_once

    @property
    def _actor(self) -> Any:
        return self._process.actor

    async def start(self) -> None:
        await call(self._actor.start.remote(), who=self.name)

    def replace(self) -> None:
        """Another process in place of this one, which is not started yet."""
        self._process.replace()

    async def placed(self) -> None:
        """Returns when the process has a place on a node."""
        await self._process.placed(who=self.name)

    async def restart(self, placed: Callable[[], None] = lambda: None) -> None:
        self.replace()
        await self.placed()
        placed()
        await self.start()

    async def heartbeat(self) -> float:
        return await call(self._actor.heartbeat.remote(), who=self.name)

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        stream = self._actor.stream.options(num_returns="streaming").remote(list(work))
        finished = False
        try:
            async for reference in stream:
                report = await call(reference, who=self.name)
                if isinstance(report, Salvage):
                    yield report, None
                    continue
                group = await anext(stream)
                if group == stream.completed():  # the end of the stream, not a group: the engine died after its report
                    await call(group, who=self.name)
                yield report, [group]
            finished = True
        finally:
            if not finished:  # dropping the stream alone would let the engine go on writing for nobody
                with suppress(Exception):  # of a dead engine there is nothing to cancel
                    ray.cancel(stream)

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        return await call(self._actor.answer.remote(list(prompts), seed=seed), who=self.name)

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        return await call(self._actor.load_weights.remote(weights[0]), who=self.name)

    async def close(self) -> None:
        await call(self._actor.close.remote(), who=self.name)


RolloutActor = ray.remote(max_restarts=0, max_task_retries=0)(RolloutShell)
