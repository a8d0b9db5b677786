"""Direct preference optimisation of a policy on preference pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.align.base import AlignStage, Job
from learners.direct.config import DirectConfig
from solon.files.marks import ModelName, PromptsPath


class DPOStage(AlignStage):
    """`{ type = "dpo", learn = { beta = 0.1, learning_rate = 5e-6 } }`"""

    kind: ClassVar[str] = "dpo"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "preferences")
    makes: ClassVar[tuple[str, ...]] = ("policy",)
    code: ClassVar[tuple[str, ...]] = ("learners.offline", "learners.data.reading")

    type: Literal["dpo"] = "dpo"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy. It is the reference too."""
    preferences: PromptsPath = ""
    """A stage or a file; empty: the latest preferences."""
    learn: DirectConfig = DirectConfig()
    max_tokens: int = Field(1024, ge=8)
    """Longest conversation; pairs with a longer one are left out."""
    soft_labels: bool = True
    """Use the judge's certainty; otherwise every chosen answer counts as certainly better."""

    def make(self, job: Job) -> None:
        self.call(job, "train")


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError, RunFailedError."""
    from learners.data.reading import read_pairs, report_skipped
    from learners.offline import train_on_pairs
    from solon.engines.tokens import ChatTokenizer

    read = read_pairs(
        given["preferences"],
        ChatTokenizer.load(given["policy"]),
        max_tokens=given["max_tokens"],
        soft=given["soft_labels"],
    )
    config = DirectConfig(**given["learn"] | {"seed": given["seed"]})
    trained = train_on_pairs(given["policy"], read.pairs, config, save_to=Path(given["out"]) / "model")
    return {"pairs": trained.examples, "skipped": report_skipped(read.skipped), **dataclasses.asdict(trained.report)}
