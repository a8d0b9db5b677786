"""A rollout engine as a Ray actor, and the lane that the loop sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import ray

from actors.calls import RemoteWorker, Spawn, call
from actors.chunks import StoredChunks
from solon.pipeline.rollout import RolloutWorker
from solon.protocols import Assignment, GenerationReport, PayloadRef
from solon.records import Group, LoadReceipt, Prompt, Salvage, Weights


class RolloutShell(RolloutWorker):
    """The worker, with its stream flattened: a report followed by its group, or the progress of a group."""

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """Fetches all chunks to this node while the engine generates, then loads them between two steps."""
        if isinstance(weights.chunks, StoredChunks):
            await asyncio.to_thread(weights.chunks.fetch)
        return await super().load_weights(weights)

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


class RemoteRollout(RemoteWorker):
    """A rollout engine in an actor."""

    def __init__(self, spawn: Spawn, *, name: str, groups_at_once: int) -> None:
        super().__init__(spawn, name=name)
        self.groups_at_once = groups_at_once

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """See `solon.protocols.RolloutLane.generate`."""
        stream = self.actor.stream.options(num_returns="streaming").remote(list(work))
        finished = False
        try:
            async for reference in stream:
                report = await call(reference, who=self.name)
                if isinstance(report, Salvage):
                    yield report, None
                    continue
                group = await anext(stream)
                if group == stream.completed():  # the stream ended: the engine died between report and group
                    await call(group, who=self.name)
                yield report, [group]
            finished = True
        finally:
            if not finished:  # dropping only the stream would not stop the engine
                with suppress(Exception):  # a dead engine has nothing to cancel
                    ray.cancel(stream)

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """One sampled answer to each prompt."""
        answers: list[str] = await self.ask("answer", list(prompts), seed=seed)
        return answers

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Load a policy version. Raises WorkerLostError."""
        receipt: LoadReceipt = await self.ask("load_weights", weights)
        return receipt


RolloutActor = ray.remote(max_restarts=0, max_task_retries=0)(RolloutShell)
