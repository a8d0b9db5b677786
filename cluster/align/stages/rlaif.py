"""Asynchronous reinforcement learning from AI feedback: an ordinary run as one stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from cluster.align.base import AlignStage, Job, require_completed
from cluster.align.file import AlignFile
from cluster.config.run_file import RunFile
from solon.files.marks import FilePath, ModelName, NamesFile, NamesModel, PromptsPath, values
from solon.host.own_code import module_command

OF_STAGE = ("policy", "judge", "prompts", "constitution", "seed")
"""Keys of a run file that the stage or the file sets."""
PLACEHOLDER = "given-by-the-stage"


class RlaifStage(AlignStage):
    """`{ type = "rlaif", run = { steps = 40, learn = { objective = "online_dpo" } } }`"""

    kind: ClassVar[str] = "rlaif"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "judge", "prompts", "constitution")
    makes: ClassVar[tuple[str, ...]] = ("policy",)
    code: ClassVar[tuple[str, ...]] = (
        "cluster.train",
        "actors.rollout",
        "actors.judge",
        "actors.learner",
        "solon.feedback.judges.program_process",
    )

    type: Literal["rlaif"] = "rlaif"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    judge: ModelName = ""
    """Empty: the file's."""
    prompts: PromptsPath = ""
    """Empty: the file's."""
    constitution: FilePath = ""
    """Empty: the file's."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Keys of a run file: `steps`, and the sections `rollout`, `judging`, `feedback`, `learn`, `ledger`, …"""

    @field_validator("run")
    @classmethod
    def _is_a_run(cls, run: dict[str, Any]) -> dict[str, Any]:
        if twice := [key for key in OF_STAGE if key in run]:
            raise ValueError(f"run.{twice[0]} is set by the stage or the file; remove it there")
        RunFile.model_validate({**dict.fromkeys(OF_STAGE[:4], PLACEHOLDER), **run})
        return run

    def further(self, file: AlignFile) -> Mapping[str, str]:
        run = self.run_file()
        named = [*values(run, NamesModel), *values(run, NamesFile)]
        return {f"run.{number}": one for number, one in enumerate(one for one in named if one and one != PLACEHOLDER)}

    def modules(self) -> Sequence[str]:
        return (*self.code, f"learners.objectives.{self.run_file().learn.objective_name}")

    def run_file(self) -> RunFile:
        """The settings as a run file; what the stage or the file sets is a placeholder."""
        return RunFile.model_validate({**dict.fromkeys(OF_STAGE[:4], PLACEHOLDER), **self.run})

    def make(self, job: Job) -> None:
        path = job.kept / "run.json"
        data = job.file.data.model_dump(exclude_unset=True)
        run = {**{key: job.inputs[key] for key in OF_STAGE[:4]}, "seed": job.file.seed, **self.run}
        if data:
            run["data"] = {**data, **run.get("data", {})}
        path.write_text(json.dumps(run, indent=1), encoding="utf-8")
        command = module_command("solon", "train", str(path), "--name", "train", "--resume", "--json")
        job.run(["env", f"SOLON_RUNS={job.kept}", *command])
        place = job.kept / "train"
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        require_completed(summary, "training")
        latest = (place / "checkpoints" / "LATEST").read_text(encoding="utf-8").strip()
        shutil.copytree(place / "checkpoints" / latest / "policy", job.out / "model")
        job.report |= {key: summary.get(key) for key in ("steps", "wall_s", "reward", "eval", "labels", "staleness")}
