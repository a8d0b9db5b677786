"""Answers of a policy to held-out prompts, scored by programs or by a judge that labelled nothing for training."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.align.base import AlignStage, Job
from cluster.align.stages.preferences import PreferencesStage
from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError, RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.files.json_text import json_text
from solon.files.marks import FilePath, ModelName, PromptsPath
from solon.models.given_names import same_place

if TYPE_CHECKING:
    from cluster.align.file import AlignFile


class EvaluateStage(AlignStage):
    """`{ type = "evaluate", evaluator = "nursery" }`, or `{ type = "evaluate", judge = "org/auditor" }`"""

    kind: ClassVar[str] = "evaluate"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "heldout_prompts", "judge", "constitution")
    makes: ClassVar[tuple[str, ...]] = ("scores",)
    code: ClassVar[tuple[str, ...]] = ("cluster.side_by_side", "nursery.sets.programs", "english.sets.programs")

    type: Literal["evaluate"] = "evaluate"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    heldout_prompts: PromptsPath = ""
    """Empty: the file's."""
    evaluator: Literal["", "nursery", "english"] = ""
    """The programs of the tiny language or of the English demo; empty: a judge."""
    judge: ModelName = ""
    """In place of programs: it answers the constitution's yes/no questions. Not the file's, which labels for
    training."""
    constitution: FilePath = ""
    """Of the judge; empty: the file's."""
    max_prompts: int = Field(256, ge=1)
    samples: int = Field(1, ge=1, le=64)
    """Answers to each prompt."""
    sampling: SamplingOptions = SamplingOptions()
    engine: EngineOptions = EngineOptions()
    """Of the policy."""
    judging: EngineOptions = EngineOptions()
    """Of the judge."""
    feedback: FeedbackConfig = FeedbackConfig()
    """How the judge is asked."""

    @model_validator(mode="after")
    def _one_scorer(self) -> Self:
        if bool(self.evaluator) == bool(self.judge):
            raise ValueError("expected evaluator or judge: who decides whether answers keep a principle; give one")
        if self.feedback.panel:
            raise ValueError("feedback names further judges, expected one judge for an evaluation; remove them")
        return self

    def takes(self, file: AlignFile, earlier: Sequence[AlignStage]) -> Mapping[str, str]:
        """Raises InputError for the judge whose labels the policy is trained on."""
        roles = super().takes(file, earlier)
        if self.evaluator:
            return {role: name for role, name in roles.items() if role not in ("judge", "constitution")}
        labels = {file.judge, *(str(getattr(one, "judge", "")) for one in earlier if "scores" not in one.makes)}
        labels |= {
            one for stage in earlier if isinstance(stage, PreferencesStage) for one in stage.further(file).values()
        }
        labels |= {one.name for one in earlier if "reward_model" in one.makes}
        if any(same_place(self.judge, one) for one in labels if one):
            raise InputError(
                f"{self.name}: the judge {self.judge!r} labels for training, and a policy learns to please it; name "
                "another judge for the evaluation"
            )
        return roles

    def make(self, job: Job) -> None:
        self.call(job, "evaluate_policy")


def evaluate_policy(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError."""
    from cluster.side_by_side import EvaluateSettings, JudgeScorer, answers, score_by_programs
    from solon.evaluation.comparison import by_principle, mean
    from solon.evaluation.results import Answered, results
    from solon.feedback.labelling.dataset import first_rows

    settings = EvaluateSettings.model_validate({name: given[name] for name in EvaluateSettings.model_fields})
    rows = first_rows(given["heldout_prompts"], given["max_prompts"], read=settings.data)
    prompts = [row.prompt for row in rows]
    one = Answered("policy", asyncio.run(answers(given["policy"], prompts, settings, given["samples"])))
    if given["evaluator"]:
        asyncio.run(score_by_programs([one], prompts, given["evaluator"]))
    else:
        asyncio.run(JudgeScorer.of(given["judge"], given["constitution"], settings).score([one], prompts))
    if not one.judged:
        raise RunFailedError("the judge gave no valid verdict on any answer; raise judging.max_model_len, or change it")
    shares = {name: mean(values).value for name, values in by_principle(one.scores_P).items()}
    scores = shares | ({"mean": sum(shares.values()) / len(shares)} if shares else {})
    out = Path(given["out"])
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    found = results([one], prompts, samples=given["samples"], tie=settings.feedback.tie_band)
    (out / "evaluation.json").write_text(json_text(found, indent=1), encoding="utf-8")
    with (out / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for row, texts, kept in zip(rows, one.answers_PS, one.scores_P, strict=True):
            record = {"row_id": row.row_id, "answer": texts[0], "answers": texts, "scores": kept}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {"scores": scores, "prompts": len(rows), "judged": one.judged}
