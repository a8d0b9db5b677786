"""Supervised fine-tuning of a policy on demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from cluster.align.base import AlignStage, Job
from learners.supervised import SupervisedConfig
from solon.files.marks import ModelName, PromptsPath


class SFTStage(AlignStage):
    """`{ type = "sft", demonstrations = "demonstrations.jsonl", learn = { epochs = 2 } }`"""

    kind: ClassVar[str] = "sft"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "demonstrations")
    makes: ClassVar[tuple[str, ...]] = ("policy",)
    code: ClassVar[tuple[str, ...]] = ("learners.supervised", "learners.data.reading", "cluster.align.ray_train")

    type: Literal["sft"] = "sft"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    demonstrations: PromptsPath = ""
    """A stage or a file of prompts with answers; empty: the latest stage that makes them."""
    learn: SupervisedConfig = SupervisedConfig()

    def make(self, job: Job) -> None:
        self.call(job, "train")


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError, RunFailedError."""
    from learners.data.reading import read_demonstrations, report_skipped
    from learners.supervised import tune
    from solon.engines.tokens import ChatTokenizer

    config = SupervisedConfig(**given["learn"] | {"seed": given["seed"]})
    read = read_demonstrations(
        given["demonstrations"], ChatTokenizer.load(given["policy"]), max_tokens=config.max_tokens
    )
    if config.num_workers:
        from cluster.align.ray_train import tune_on_ray as run
    else:
        run = tune
    tuned = run(
        given["policy"],
        read.rows,
        config,
        save_to=Path(given["out"]) / "model",
        folder=Path(given["scratch"]) / "trainer",
    )
    return {"skipped": report_skipped(read.skipped), **dataclasses.asdict(tuned)}
