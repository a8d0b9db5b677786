"""Answers of a policy to held-out prompts, scored by programs that no stage learns from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.align.base import AlignStage, Job
from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.files.marks import ModelName, PromptsPath


class EvaluateStage(AlignStage):
    """`{ type = "evaluate", evaluator = "nursery" }`"""

    kind: ClassVar[str] = "evaluate"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "heldout_prompts")
    makes: ClassVar[tuple[str, ...]] = ("scores",)
    code: ClassVar[tuple[str, ...]] = (
        "cluster.evaluate",
        "solon.pipeline.rollout",
        "nursery.oracles",
        "english.prompts",
    )

    type: Literal["evaluate"] = "evaluate"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    heldout_prompts: PromptsPath = ""
    """Empty: the file's."""
    evaluator: Literal["nursery", "english"]
    """The programs of the tiny language or of the English demo."""
    max_prompts: int = Field(256, ge=1)
    sampling: SamplingOptions = SamplingOptions()
    engine: EngineOptions = EngineOptions()

    def make(self, job: Job) -> None:
        self.call(job, "evaluate_policy")


def evaluate_policy(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError."""
    from cluster.evaluate import ProgramEvaluator, mean_scores
    from solon.engines.lengths import engine_config
    from solon.feedback.labelling.dataset import first_rows
    from solon.files.data_config import ReadConfig
    from solon.pipeline.rollout import RolloutSettings, RolloutWorker

    rows = first_rows(given["heldout_prompts"], given["max_prompts"], read=ReadConfig(**given["data"]))
    prompts, seed = [row.prompt for row in rows], given["seed"]
    sampling = SamplingOptions(**given["sampling"]).sampling()
    engine = engine_config(given["policy"], EngineOptions(**given["engine"]), seed=seed)
    worker = RolloutWorker(engine, RolloutSettings(sampling=sampling, group_size=1, seed=seed), name="policy")

    async def answers() -> list[str]:
        await worker.start()
        try:
            return await worker.answer(prompts, seed=seed)
        finally:
            await worker.close()

    found = asyncio.run(answers())
    judged = asyncio.run(ProgramEvaluator(given["evaluator"])(prompts, found))
    scores = mean_scores([one.obeys for one in judged])
    out = Path(given["out"])
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    with (out / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for row, answer, one in zip(rows, found, judged, strict=True):
            record = {"row_id": row.row_id, "answer": answer, "scores": {k: float(v) for k, v in one.obeys.items()}}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {"scores": scores, "prompts": len(rows)}
