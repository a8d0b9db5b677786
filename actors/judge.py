"""A feedback model as a Ray actor, and the lane that the loop sees."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from actors.calls import RemoteWorker, Spawn, call
from solon.feedback.interfaces import Item
from solon.feedback.worker import JudgeWorker
from solon.ledger.ledger import Work
from solon.protocols import LabelReport, PayloadRef
from solon.records import Feedback, Group
from solon.verdicts import Verdict


class JudgeShell(JudgeWorker):
    """The worker under a readable name."""

    def __repr__(self) -> str:
        return f"Judge({self.name})"


class RemoteJudge(RemoteWorker):
    """A feedback model in an actor. `start` returns its `JudgeIdentity`."""

    def __init__(self, spawn: Spawn, *, name: str, groups_at_once: int) -> None:
        super().__init__(spawn, name=name)
        self.groups_at_once = groups_at_once

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """See `solon.protocols.JudgeLane.label`."""
        report, feedback = await self.ask_parts("label", 2, work.payload[0])
        return report, feedback

    async def label_group(self, group: Group) -> Feedback:
        """The feedback on a group that the caller owns: for evaluation and audit."""
        _, (feedback,) = await self.ask_parts("label", 2, group)
        result: Feedback = await call(feedback, who=self.name)
        return result

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts, without any cache."""
        verdicts: list[Verdict] = await self.ask("judge_fresh", list(items))
        return verdicts


JudgeActor = ray.remote(max_restarts=0, max_task_retries=0)(JudgeShell)
