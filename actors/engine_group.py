"""An engine of several ranks: one actor for each, replaced together. The first one leads and takes the calls.

Every other rank is one long call that follows the first; when it ends, all processes of the engine are ended, so that
every pending call fails at once and the engine is replaced as one that died.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import remove_placement_group

from actors.calls import RAY_IS_GONE, RemoteWorker, call
from actors.chunks import StoredChunks
from actors.judge import JudgeShell, RemoteJudge
from actors.rollout import RemoteRollout, RolloutShell
from solon.engines.base import EngineConfig
from solon.engines.build import build_rank, meeting_of
from solon.engines.ranks.following import Follower
from solon.engines.ranks.meeting import Meeting
from solon.errors import EngineFailedError, InputError, RunFailedError, WorkerLostError
from solon.protocols import Assignment, GenerationReport, PayloadRef
from solon.records import LoadReceipt, Salvage, Weights

GROUPS = {"signs": 1, "weights": 1}
"""Threads of a following rank beside the one that computes."""
GRACE_S = 2.0
"""Seconds for a rank that fails to report, after another one failed: its error may be the cause."""


class FollowerShell(Follower):
    """A following rank as an actor."""

    def __init__(self, config: EngineConfig, *, name: str, rank: int) -> None:
        super().__init__(config, name=name, rank=rank, build=build_rank)

    @ray.method(concurrency_group="weights")  # type: ignore[untyped-decorator]
    def give(self, weights: Weights) -> None:
        """Fetches all chunks to this node, while the engine computes. Raises PayloadLostError."""
        if isinstance(weights.chunks, StoredChunks):
            weights.chunks.fetch()
        super().give(weights)

    @ray.method(concurrency_group="signs")  # type: ignore[untyped-decorator]
    def heartbeat(self) -> float:
        """Answered while it computes: seconds since it began."""
        return self.stalled_s

    def __repr__(self) -> str:
        return f"Rank({self.name})"


class LeadsRollout(RolloutShell):
    """The first rank of a rollout engine."""

    async def meeting(self) -> Meeting:
        """Where the other ranks find it."""
        return await asyncio.wrap_future(meeting_of(self.name))


class LeadsJudge(JudgeShell):
    """The first rank of a judge."""

    async def meeting(self) -> Meeting:
        """Where the other ranks find it."""
        return await asyncio.wrap_future(meeting_of(self.name))


class Ranked(RemoteWorker):
    """What a remote with an engine of several ranks does differently. Put it before the remote among the bases."""

    def __init__(
        self, spawn: Callable[[int], Sequence[Any]], *, name: str, node: Any, silent_s: float, **rest: Any
    ) -> None:
        """spawn: makes the actors of all ranks. node: their placement group, which keeps its node while they are
        replaced. silent_s: seconds without a heartbeat of one rank after another one gave its own."""
        self.node, self._silent_s = node, silent_s
        self._actors: Sequence[Any] = ()
        self._following: list[asyncio.Task[None]] = []
        self._lost: WorkerLostError | InputError | None = None

        def made(number: int) -> Any:
            self._actors, self._following, self._lost = spawn(number), [], None
            return self._actors[0]

        super().__init__(made, name=name, **rest)

    @property
    def actors(self) -> Sequence[Any]:
        """In the order of the ranks."""
        return self._actors

    def replace(self) -> None:
        """Replace the processes of all ranks by new ones, not started yet, on the same node."""
        if RAY_IS_GONE.is_set():
            raise RunFailedError("Ray is gone")
        self._forget()
        self.actor = self._spawn(self._made)
        self._made += 1

    def end(self) -> None:
        """Kill the processes of all ranks, and give their node back."""
        self._forget()
        if not RAY_IS_GONE.is_set():
            with suppress(ValueError, ray.exceptions.RayError):
                remove_placement_group(self.node)

    async def placed(self) -> None:
        """Returns when all ranks have a node, the same for all, and their processes run. Raises WorkerLostError."""
        await call(self.node.ready(), who=self.name)
        ready = [call(actor.__ray_ready__.remote(), who=self._who(rank)) for rank, actor in enumerate(self.actors)]
        await asyncio.gather(*ready)

    async def start(self, *arguments: Any) -> Any:
        """The result of the first rank's `start`, after all ranks have built their part."""
        started = asyncio.ensure_future(self.ask("start", *arguments))
        met = asyncio.ensure_future(self.ask("meeting"))
        try:
            await asyncio.wait({started, met}, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():  # else it failed before it opened the meeting
                others = range(1, len(self.actors))
                self._following = [asyncio.ensure_future(self._follow(rank, met.result())) for rank in others]
            return await started
        finally:
            for task in (started, met):
                task.cancel()

    async def heartbeat(self) -> float:
        """The longest time without progress of a rank. Raises WorkerLostError that names a rank which does not
        answer."""
        asked = [asyncio.ensure_future(self._heard(rank)) for rank in range(len(self.actors))]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(asked, timeout=self._silent_s)
            silent = [rank for rank, one in enumerate(asked) if not one.done()]
            if silent:
                raise WorkerLostError(f"{self._who(*silent)} did not answer a heartbeat within {self._silent_s:g} s")
            return max(one.result() for one in asked)
        except WorkerLostError as error:
            raise await self._cause(error) from None
        finally:
            for one in asked:
                one.cancel()

    async def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """As for one process; an error says which rank was lost."""
        try:
            return await super().ask(method, *arguments, **named)
        except WorkerLostError as error:
            raise await self._cause(error) from None

    async def ask_parts(self, method: str, parts: int, *arguments: Any) -> tuple[Any, ...]:
        """As for one process; an error says which rank was lost."""
        try:
            return await super().ask_parts(method, parts, *arguments)
        except WorkerLostError as error:
            raise await self._cause(error) from None

    async def _heard(self, rank: int) -> float:
        stalled_s: float = await call(self.actors[rank].heartbeat.remote(), who=self._who(rank))
        return stalled_s

    async def _follow(self, rank: int, meeting: Meeting) -> None:
        try:
            await call(self.actors[rank].run.remote(meeting), who=self._who(rank))
            lost: WorkerLostError | InputError = WorkerLostError(f"{self._who(rank)} ended")
        except InputError as error:
            lost = error
        except Exception as error:
            lost = WorkerLostError(f"{self._who(rank)} was lost, and all ranks with it: {error}")
            if isinstance(error, EngineFailedError):  # of a live process: the first rank may tell what caused it
                await asyncio.sleep(GRACE_S)
        if self._lost is None:
            self._lost = lost
        self._kill()

    async def _cause(self, error: WorkerLostError) -> WorkerLostError | InputError:
        """What ended the engine, if that was another rank than the first."""
        if self._lost is None and self._following:
            await asyncio.wait(self._following, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        return self._lost or error

    def _forget(self) -> None:
        for task in self._following:
            task.cancel()
        self._kill()

    def _kill(self) -> None:
        for actor in self.actors:
            if not RAY_IS_GONE.is_set():
                with suppress(ValueError, ray.exceptions.RayError):  # already dead
                    ray.kill(actor, no_restart=True)

    def _who(self, *ranks: int) -> str:
        return f"{self.name}, rank {', '.join(map(str, ranks))} of {len(self.actors)}"


class RemoteRolloutGroup(Ranked, RemoteRollout):
    """A rollout engine of several ranks."""

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """See `solon.protocols.RolloutLane.generate`."""
        try:
            async for item in super().generate(work):
                yield item
        except WorkerLostError as error:
            raise await self._cause(error) from None

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Gives every rank the policy version, then lets all load it. Raises WorkerLostError."""
        given = [
            call(actor.give.remote(weights), who=self._who(rank)) for rank, actor in enumerate(self.actors[1:], start=1)
        ]
        await asyncio.gather(*given)
        return await super().load_weights(weights)


class RemoteJudgeGroup(Ranked, RemoteJudge):
    """A judge of several ranks."""


FollowerActor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=GROUPS)(FollowerShell)
LeadingRolloutActor = ray.remote(max_restarts=0, max_task_retries=0)(LeadsRollout)
LeadingJudgeActor = ray.remote(max_restarts=0, max_task_retries=0)(LeadsJudge)
