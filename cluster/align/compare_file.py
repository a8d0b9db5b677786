"""The comparison file: methods, each a list of stages, from one starting policy, over several seeds.

    policy = "org/model"
    judge = "org/judge"
    prompts = "prompts.jsonl"
    constitution = "constitution.yaml"
    heldout_prompts = "heldout.jsonl"
    seeds = [0, 1, 2]

    [evaluate]
    judge = "org/auditor"

    [[methods]]
    name = "dpo"
    [[methods.stages]]
    type = "preferences"
    [[methods.stages]]
    type = "dpo"

docs/choosing-a-method.md describes it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from cluster.align.file import PATHS, AlignFile, paths_in
from cluster.align.sizes import Scaled, scaled
from cluster.config.sections import Section
from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError, nearest
from solon.feedback.config import FeedbackConfig
from solon.files.data_config import ReadConfig
from solon.files.marks import FilePath, ModelName, PromptsPath, rewrite
from solon.files.overrides import parse_override, put
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid
from solon.models.given_names import is_given_name, same_place

DRIFT = "drift-of-the-method"
"""Name of the stage that measures how far a method went."""


class EvaluateSection(BaseModel):
    """Who grades the policies, and how they answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluator: str = ""
    """`nursery` or `english`: programs in place of a judge."""
    judge: ModelName = ""
    """An auditor; not the judge that labels."""
    constitution: FilePath = ""
    """Of the auditor; empty: the file's."""
    max_prompts: int = Field(256, ge=2)
    samples: int = Field(1, ge=1, le=64)
    """Answers to each prompt."""
    sampling: SamplingOptions = SamplingOptions()
    engine: EngineOptions = EngineOptions()
    """Of the policies."""
    judging: EngineOptions = EngineOptions()
    """Of the auditor."""
    feedback: FeedbackConfig = FeedbackConfig()


class MethodSection(BaseModel):
    """One of the methods."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,39}$")
    stages: tuple[dict[str, Any], ...] = Field(min_length=1)
    scales: tuple[str, ...] = ()
    """Keys that grow with the budget: `STAGE.KEY`, as in `rlaif.run.steps`."""


class CompareFile(Section):
    """`CompareFile.load("compare.toml")`"""

    policy: ModelName = Field(min_length=1)
    """What every method starts from."""
    judge: ModelName = ""
    """Labels for all methods."""
    prompts: PromptsPath = ""
    constitution: FilePath = ""
    heldout_prompts: PromptsPath = Field(min_length=1)
    """Prompts of the evaluation."""
    data: ReadConfig = ReadConfig()
    """Column and split of the prompts."""
    label: dict[str, Any] = Field(default_factory=dict)
    """Settings of `solon label`."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1)
    budget_s: float | None = Field(None, gt=0)
    """Seconds of this machine for each method and seed; None: methods are as large as they are written."""
    tolerance: float = Field(0.15, gt=0, lt=1)
    """Share by which a method may miss the budget."""
    usd_per_hour: float = Field(0.0, ge=0)
    """Price of this machine."""
    drift: bool = True
    """Measure the KL divergence of every policy from the start."""
    evaluate: EvaluateSection
    methods: tuple[MethodSection, ...] = Field(min_length=1)
    _folder: Path = PrivateAttr(Path())
    _where: str = PrivateAttr("")

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"got {list(seeds)}, expected different numbers")
        return seeds

    @field_validator("methods")
    @classmethod
    def _names_differ(cls, methods: tuple[MethodSection, ...]) -> tuple[MethodSection, ...]:
        names = [one.name for one in methods]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"two methods are named {twice!r}, expected one; rename one")
        return methods

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check, every method's stages included. Raises InputError."""
        path = Path(path)
        raw = read_toml(path, what="comparison file")
        for override in overrides:
            key, value, _ = parse_override(override)
            if key.partition(".")[0] == "methods":
                raise InputError(f"--set {key}: methods are set in the file, expected another key; change the file")
            put(raw, key, value, override)
        where = f"comparison file {path}"
        for key in paths_in(cls):
            rewrite(raw, key, partial(_beside, path.parent))
        try:
            file = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{where}: {describe_invalid(cls, error)}") from None
        file._folder, file._where = path.parent, where
        for method in file.methods:
            for seed in file.seeds:
                file._check(method, file.alignment(method, seed, 1.0))
        file._check_grader()
        if file.budget_s and (fixed := next((one.name for one in file.methods if not one.scales), "")):
            raise InputError(
                f"{where}: budget_s is set and the method {fixed!r} has no scales, expected keys that grow with the "
                'budget, as in scales = ["rlaif.run.steps"]; add them, or remove budget_s'
            )
        return file

    def _check(self, method: MethodSection, found: AlignFile) -> None:
        where = f"{self._where}: method {method.name}"
        if not any("policy" in stage.makes for stage in found.stages):
            raise InputError(f"{where} makes no policy, expected a stage that trains one; add sft, dpo, kto or rlaif")
        if not (auditor := self.evaluate.judge):
            return
        judges = [
            source.path for number, stage in enumerate(found.stages) for role, source in found.sources(number).items()
            if role == "judge" and "scores" not in stage.makes
        ]  # fmt: skip
        judges += [
            one for stage in found.stages if "scores" not in stage.makes for one in stage.further(found).values()
        ]
        if any(same_place(auditor, one) for one in judges if one):
            raise InputError(
                f"{where}: evaluate.judge is {auditor}, which labels too, expected another: the method would be graded "
                "by how well it pleases its teacher; name an auditor of another family"
            )

    def _check_grader(self) -> None:
        if self.prompts and same_place(self.prompts, self.heldout_prompts):
            raise InputError(
                f"{self._where}: heldout_prompts are the prompts that methods train on, expected others; split the file"
            )
        from cluster.evaluate import PROGRAMS

        section = self.evaluate
        if bool(section.evaluator) == bool(section.judge):
            raise InputError(
                f"{self._where}: expected evaluate.evaluator or evaluate.judge: who grades; set one of the two"
            )
        if section.evaluator and section.evaluator not in PROGRAMS:
            raise InputError(
                f"{self._where}: evaluate.evaluator is {section.evaluator!r}, expected one of "
                f"{', '.join(sorted(PROGRAMS))}{nearest(section.evaluator, PROGRAMS)}"
            )
        if section.judge and not (section.constitution or self.constitution):
            raise InputError(
                f"{self._where}: evaluate.judge has no constitution, expected one; set evaluate.constitution"
            )

    def alignment(self, method: MethodSection, seed: int, size: float) -> AlignFile:
        """The stages of a method as an alignment. size: what `scales` are multiplied by. Raises InputError."""
        stages = copy.deepcopy(list(method.stages))
        where = f"{self._where}: method {method.name}"
        stages = scaled(stages, Scaled(keys=method.scales, factor=size), where)
        if self.drift:
            sampling, engine = self.evaluate.sampling, self.evaluate.engine.model_dump(exclude_unset=True)
            tail = {"type": "drift", "name": DRIFT, "max_tokens": sampling.max_tokens, "engine": engine}
            stages.append(tail | {"max_prompts": min(128, self.evaluate.max_prompts)})
        given = {key: getattr(self, key) for key in PATHS if getattr(self, key)}
        data = {"data": self.data.model_dump(exclude_unset=True)} if self.data != ReadConfig() else {}
        raw = {**given, **data, "seed": seed, "label": copy.deepcopy(self.label), "stages": stages}
        return AlignFile.of(raw, self._folder, where=where)


def _beside(folder: Path, _: str, value: Any) -> Any:
    """A path of the file, from its folder; names of models stay."""
    if isinstance(value, list):
        return [_beside(folder, "", one) for one in value]
    if not isinstance(value, str) or not value or is_given_name(value):
        return value
    path = (folder / Path(value).expanduser()).absolute()
    return str(path) if path.exists() else value
