"""The supervised part of Constitutional AI: the policy criticises and revises its own answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.align.base import AlignStage, Job
from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.files.marks import FilePath, ModelName, PromptsPath


class ConstitutionalStage(AlignStage):
    """`{ type = "constitutional", rounds = 2 }`: then `sft` on the revisions, `preferences`, and `dpo` or `rlaif`."""

    kind: ClassVar[str] = "constitutional"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "prompts", "constitution")
    makes: ClassVar[tuple[str, ...]] = ("demonstrations", "preferences")
    code: ClassVar[tuple[str, ...]] = ("solon.revision.running", "solon.revision.writing")

    type: Literal["constitutional"] = "constitutional"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    prompts: PromptsPath = ""
    """Empty: the file's."""
    constitution: FilePath = ""
    """Empty: the file's. Its principles need revision_request, and critique_request for critiques."""
    max_prompts: int = Field(256, ge=1)
    """Most prompts of the file that are used, in its order."""
    skip_prompts: int = Field(0, ge=0)
    """Begin behind so many prompts; behind the last one the first follows."""
    rounds: int = Field(1, ge=1, le=16)
    """Critiques and revisions of each answer, each under a principle of its own."""
    critique: bool = True
    """Criticise an answer before its revision. Very small models revise better at once."""
    shots: int = Field(0, ge=0, le=16)
    """Without critiques: revised examples of each principle (the constitution's `examples`) before the prompt."""
    sampling: SamplingOptions = SamplingOptions()
    engine: EngineOptions = EngineOptions()
    """Its max_model_len must hold prompt, answers, critiques and revisions."""

    @model_validator(mode="after")
    def _examples_have_no_critiques(self) -> Self:
        if self.critique and self.shots:
            raise ValueError("shots is above 0, and examples have no critiques; set critique = false")
        return self

    def make(self, job: Job) -> None:
        self.call(job, "write")


def write(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError."""
    from solon.constitution.constitution import Constitution
    from solon.feedback.labelling.dataset import first_rows
    from solon.files.data_config import ReadConfig
    from solon.revision.running import ReviseSettings, run_chains
    from solon.revision.writing import write_chains

    rows = first_rows(
        given["prompts"], given["max_prompts"], skip=given["skip_prompts"], read=ReadConfig(**given["data"])
    )
    settings = ReviseSettings(
        rounds=given["rounds"],
        critique=given["critique"],
        shots=given["shots"],
        sampling=SamplingOptions(**given["sampling"]),
        engine=EngineOptions(**given["engine"]),
        seed=given["seed"],
    )
    constitution = Constitution.load(given["constitution"])
    chains = asyncio.run(run_chains(given["policy"], [row.prompt for row in rows], constitution, settings))
    return write_chains(Path(given["out"]), chains)
