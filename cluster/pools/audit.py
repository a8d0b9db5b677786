"""A second judge, for evaluation and audit only: always asked yes/no questions, never in the loop."""

from __future__ import annotations

from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext
from cluster.pools.judge import JudgeRole
from solon.feedback.caches.semantic import SemanticConfig
from solon.feedback.config import FeedbackConfig
from solon.feedback.panels.panel_config import CascadeSection, JurySection
from solon.feedback.panels.selective import SelectionSection

ALONE: dict[str, Any] = {
    "calibration": "",
    "cascade": CascadeSection(),
    "jury": JurySection(),
    "semantic": SemanticConfig(),
    "select": SelectionSection(),
}
"""Features that an audit does not use: it is one judge, asked directly."""


class AuditRole(JudgeRole):
    """`[pools.auditor] role = "audit"`"""

    role: ClassVar[str] = "audit"
    is_single: ClassVar[bool] = True  # evaluation and audit ask one worker

    def feedback(self, context: PoolContext) -> FeedbackConfig:
        update = {"task": "pointwise", "principles_per_group": 0, **ALONE}
        return context.run.feedback.model_copy(update=update)

    def groups_at_once(self, pool: PoolSpec, context: PoolContext) -> int:
        return 1
