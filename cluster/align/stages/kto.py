"""Kahneman-Tversky optimisation of a policy on answers that are rated one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.align.base import AlignStage, Job
from learners.direct.config import RatingConfig
from solon.files.marks import ModelName, PromptsPath


class KTOStage(AlignStage):
    """`{ type = "kto", learn = { beta = 0.1, learning_rate = 5e-6 } }`"""

    kind: ClassVar[str] = "kto"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "ratings")
    makes: ClassVar[tuple[str, ...]] = ("policy",)
    code: ClassVar[tuple[str, ...]] = ("learners.offline", "learners.data.reading")

    type: Literal["kto"] = "kto"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy. It is the reference too."""
    ratings: PromptsPath = ""
    """A stage or a file; empty: the latest ratings."""
    learn: RatingConfig = RatingConfig()
    max_tokens: int = Field(1024, ge=8)
    """Longest conversation; answers to longer ones are left out."""

    def make(self, job: Job) -> None:
        self.call(job, "train")


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError, RunFailedError."""
    from learners.data.reading import read_ratings, report_skipped
    from learners.offline import train_on_ratings
    from solon.engines.tokens import ChatTokenizer

    read = read_ratings(given["ratings"], ChatTokenizer.load(given["policy"]), max_tokens=given["max_tokens"])
    config = RatingConfig(**given["learn"] | {"seed": given["seed"]})
    trained = train_on_ratings(given["policy"], read.rows, config, save_to=Path(given["out"]) / "model")
    return {"answers": trained.examples, "skipped": report_skipped(read.skipped), **dataclasses.asdict(trained.report)}
