"""A learner of several ranks: one actor for each, called together and replaced together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import ray

from actors.calls import RAY_IS_GONE, Spawn, call
from actors.learner import RemoteLearner
from solon.errors import InputError, WorkerLostError
from solon.runs.directory import DiskFullError

OF_OTHERS = re.compile("gloo|nccl|connection|timed out", re.IGNORECASE)
"""In an error that a rank raises because another one is gone."""
GRACE_S = 5.0
"""Seconds for the other ranks to finish or fail after the first one failed: their errors tell which of them is the
cause."""


class RemoteLearnerGroup(RemoteLearner):
    """Ranks that train one policy, as one learner. The first rank reports and publishes.

    Whatever happens to one rank, all are replaced and load the last checkpoint: the survivors may be half way through a
    step.
    """

    def __init__(self, spawn: Spawn, *, name: str, ranks: int, node: Any, silent_s: float) -> None:
        """spawn: makes the actors of all ranks, a list. node: their placement group, which keeps its nodes while they
        are replaced. silent_s: seconds without a heartbeat of one rank after another one gave its own."""
        self._ranks, self.node, self._silent_s = ranks, node, silent_s
        super().__init__(spawn, name=name)

    @property
    def actors(self) -> Sequence[Any]:
        """In the order of the ranks."""
        found: Sequence[Any] = self.actor
        return found

    def end(self) -> None:
        """Kill the processes of all ranks."""
        for actor in self.actors:
            if not RAY_IS_GONE.is_set():
                with suppress(ValueError, ray.exceptions.RayError):  # already dead
                    ray.kill(actor, no_restart=True)

    async def placed(self) -> None:
        """Returns when all ranks have a node and their processes run. Raises WorkerLostError."""
        await call(self.node.ready(), who=self.name)
        await self._each([actor.__ray_ready__.remote() for actor in self.actors])

    async def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The result of a method of the first rank, after all ranks have run it."""
        results = await self._each([getattr(actor, method).remote(*arguments, **named) for actor in self.actors])
        return results[0]

    async def ask_chunks(self, method: str, *arguments: Any) -> tuple[Any, list[ray.ObjectRef]]:
        """As for one process, of the first rank, after all ranks have ended the method."""
        if method == "start":
            meeting = await call(self.actors[0].open_meeting.remote(), who=self._who(0))
            arguments = (*arguments, meeting)
        streams = [getattr(actor, method).options(num_returns="streaming").remote(*arguments) for actor in self.actors]
        results = await self._each([_to_the_end(stream) for stream in streams])
        value, chunks = results[0]
        return value, chunks

    async def heartbeat(self) -> float:
        """The longest time without progress of a rank. Raises WorkerLostError that names a rank which does not
        answer."""
        asked = [asyncio.ensure_future(self._heard(rank)) for rank in range(self._ranks)]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(asked, timeout=self._silent_s)
            silent = [rank for rank, one in enumerate(asked) if not one.done()]
            if silent:
                raise WorkerLostError(f"{self._who(*silent)} did not answer a heartbeat within {self._silent_s:g} s")
            return max(one.result() for one in asked)
        finally:
            for one in asked:
                one.cancel()

    async def _heard(self, rank: int) -> float:
        stalled_s: float = await call(self.actors[rank].heartbeat.remote(), who=self._who(rank))
        return stalled_s

    def _who(self, *ranks: int) -> str:
        return f"{self.name}, rank {', '.join(map(str, ranks))} of {self._ranks}"

    async def _each(self, calls: Sequence[Any]) -> list[Any]:
        """The results of one call to every rank. Raises the error that all of them raised, or WorkerLostError that
        names the rank which is the cause."""
        asked = [asyncio.ensure_future(call(result, who=self._who(rank))) for rank, result in enumerate(calls)]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
            failed = any(one.done() and one.exception() for one in asked)
            if failed:
                await asyncio.wait(asked, timeout=GRACE_S)
                raise self._cause(asked)
            return [one.result() for one in asked]
        finally:
            for one in asked:
                one.cancel()

    def _cause(self, asked: Sequence[asyncio.Future[Any]]) -> BaseException:
        """A rank that died, or that has an error of its own, or does not answer, in this order; an error that all
        ranks share is that of one learner."""
        errors = {rank: one.exception() for rank, one in enumerate(asked) if one.done()}
        raised = {rank: error for rank, error in errors.items() if error is not None}
        if len(raised) == self._ranks and len({type(one) for one in raised.values()}) == 1:
            first = raised[0]
            if not isinstance(first, WorkerLostError) or len(set(map(str, raised.values()))) == 1:
                return first
        # The run ends, or makes room on the disk; what the other ranks wait for is of no use.
        if own := next((one for one in raised.values() if isinstance(one, InputError | DiskFullError)), None):
            return own
        dead = {rank: one for rank, one in raised.items() if type(one) is WorkerLostError}
        other = {rank: one for rank, one in raised.items() if rank not in dead and not OF_OTHERS.search(str(one))}
        if not dead and other.keys() == raised.keys() and len(errors) == self._ranks:
            return next(iter(other.values()))  # no rank waits for another one
        for some in (dead, other):
            if some:
                rank, error = next(iter(some.items()))
                return WorkerLostError(f"{self._who(rank)} was lost, and all ranks with it: {error}")
        silent = [rank for rank in range(self._ranks) if rank not in errors]
        rank, error = next(iter(raised.items()))
        if silent:
            return WorkerLostError(f"{self._who(*silent)} did not answer, and all ranks were lost with it: {error}")
        return WorkerLostError(f"{self._who(rank)} lost the others: {error}")


async def _to_the_end(stream: AsyncIterator[ray.ObjectRef]) -> tuple[Any, list[ray.ObjectRef]]:
    """The last item of a generator method, and references to those before it."""
    references = [reference async for reference in stream]
    if not references:
        raise WorkerLostError("the method ended without a result")
    return await references[-1], references[:-1]
