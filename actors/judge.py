"""A feedback model as a Ray actor, and the lane that the loop sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.calls import Process, Spawn, call
from solon.feedback.interfaces import Item, Verdict
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.worker import JudgeWorker
from solon.ledger.ledger import Work
from solon.protocols import LabelReport, PayloadRef
from solon.records import Group


class JudgeShell(JudgeWorker):
    """The worker under a readable name."""

    def __repr__(self) -> str:
        return f"Judge({self.name})"


class RemoteJudge:
    """A feedback model in an actor, which can be replaced."""

    def __init__(self, spawn: Spawn, *, name: str, groups_at_once: int) -> None:
        self._process = Process(spawn)
        self.name = name
        self.groups_at_once = groups_at_once

    @property
    def _actor(self) -> Any:
        return self._process.actor

    async def start(self) -> JudgeIdentity:
        return await call(self._actor.start.remote(), who=self.name)

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

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        report, feedback = self._actor.label.options(num_returns=2).remote(work.payload[0])
        return await call(report, who=self.name), [feedback]

    async def label_group(self, group: Group) -> Any:
        """The feedback on a group that lives here: for evaluation."""
        report, feedback = self._actor.label.options(num_returns=2).remote(group)
        await call(report, who=self.name)
        return await call(feedback, who=self.name)

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts past the caches."""
        result: list[Verdict] = await call(self._actor.judge_fresh.remote(list(items)), who=self.name)
        return result

    async def close(self) -> None:
        await call(self._actor.close.remote(), who=self.name)


JudgeActor = ray.remote(max_restarts=0, max_task_retries=0)(JudgeShell)
