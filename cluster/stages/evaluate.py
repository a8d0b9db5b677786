"""Answers of the current policy to held-out prompts, scored by an evaluator that never rewards it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from cluster.stages.base import PoolNeed, Stage
from solon.errors import short

if TYPE_CHECKING:
    from cluster.evaluate import Evaluator
    from cluster.session import RunSession

SEED = 20_000
"""The first seed of every evaluation of a run, so that before and after are sampled alike."""


class EvaluateStage(Stage):
    """`{ type = "evaluate", prompts = "heldout.jsonl", evaluator = "judge", judge = "auditor" }`"""

    kind: ClassVar[str] = "evaluate"
    moved: ClassVar[Mapping[str, str]] = {
        "prompts": "evaluate.prompts",
        "evaluator": "evaluate.evaluator",
        "max_prompts": "evaluate.max_prompts",
    }

    type: Literal["evaluate"] = "evaluate"
    name: str = ""
    """Distinguishes evaluations, and is part of the name of their file; letters, digits, `-` and `_`. Empty: `before`
    or `after`, by its position relative to the training."""
    policy: str = "policy"
    """The pool whose engines answer."""
    judge: str = ""
    """The pool that scores the answers, with `evaluator = "judge"`."""

    @field_validator("name")
    @classmethod
    def _is_part_of_a_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{0,100}", name):
            raise ValueError(
                f"got {short(name)}, expected at most 100 letters, digits, `-` and `_`: the name is part of the name "
                "of a file; rename it"
            )
        return name

    def pools(self) -> Sequence[PoolNeed]:
        judges = [PoolNeed(key="judge", name=self.judge, role="audit")] if self.judge else []
        return [PoolNeed(key="policy", name=self.policy, role="rollout"), *judges]

    async def run(self, session: RunSession) -> bool:
        if session.scores.get(self.name) is not None:  # measured by the run that this one resumes
            return True
        return await session.unless_stopped(self._evaluate(session))

    async def _evaluate(self, session: RunSession) -> None:
        from cluster.evaluate import evaluate

        seed = SEED + session.run.seed
        lanes = session.workers[self.policy].lanes
        found = await evaluate(lanes, session.inputs.heldout, self._evaluator(session), seed=seed)
        session.scores[self.name] = found.scores
        session.directory.write_json(f"heldout-{self.name}.json", found.rows())
        session.view.evaluated(self.name, found.scores)

    def _evaluator(self, session: RunSession) -> Evaluator:
        from cluster.evaluate import AuditEvaluator, ProgramEvaluator

        if self.judge:
            return AuditEvaluator(session.workers[self.judge].lane)
        return ProgramEvaluator(session.run.evaluate.evaluator)
