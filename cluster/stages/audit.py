"""The gold audit: another judge reads a share of the policy's answers while a later stage trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from cluster.config.sections import WatchSection
from cluster.stages.base import PoolNeed, Stage

if TYPE_CHECKING:
    from cluster.session import RunSession


class AuditStage(Stage):
    """`{ type = "audit", judge = "auditor", action = "stop" }`: attached to the training that follows."""

    kind: ClassVar[str] = "audit"
    moved: ClassVar[Mapping[str, str]] = {
        key: f"watch.{key}" for key in WatchSection.model_fields if key != "audit_judge"
    }
    serves: ClassVar[str] = "rlaif"
    is_once: ClassVar[bool] = True

    type: Literal["audit"] = "audit"
    judge: str
    """The pool of the auditing judge."""

    def pools(self) -> Sequence[PoolNeed]:
        return [PoolNeed(key="judge", name=self.judge, role="audit")]

    async def run(self, session: RunSession) -> bool:
        from cluster.audit import make_watch

        session.watching = make_watch(session, gold=session.workers[self.judge].lane)
        # It keeps the payload of a group until the group is committed or dropped.
        session.ledger.listen(session.watching.event)
        return True
