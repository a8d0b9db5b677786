"""The alignment file: a starting policy, a judge, prompts, and stages that run one after another.

    policy = "org/model"
    judge = "org/judge"
    prompts = "prompts.jsonl"
    constitution = "constitution.yaml"

    [[stages]]
    type = "preferences"

    [[stages]]
    type = "dpo"

docs/align.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError

from cluster.align.base import PRODUCTS, AlignStage, Source
from cluster.align.rounds import unrolled
from cluster.align.stages import known_stages
from cluster.config.run_file import HOLDS_A_SECRET, RunFile
from cluster.config.sections import Section
from solon.engines.base import EngineOptions
from solon.errors import InputError, nearest
from solon.feedback.config import FeedbackConfig
from solon.files.data_config import ReadConfig
from solon.files.marks import FilePath, ModelName, NamesFile, NamesModel, PromptsPath, marked, rewrite
from solon.files.overrides import parse_override, put
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid
from solon.models.given_names import is_given_name
from solon.redaction import places_of_secrets

PATHS = ("policy", "judge", "prompts", "constitution", "heldout_prompts")
"""Keys of the file that name a model or a file."""
SERVES: Mapping[str, str] = {"judge": "reward_model"}
"""Inputs that a stage may be named for although it makes another product: a reward model judges."""
LABEL_SECTIONS: Mapping[str, type[BaseModel]] = {
    "feedback": FeedbackConfig,
    "judging": EngineOptions,
    "write.engine": EngineOptions,
}
"""Sections of `[label]`."""


class AlignFile(Section):
    """A whole alignment. `AlignFile.load("align.toml", overrides=["seed=1"])`"""

    policy: ModelName = Field(min_length=1)
    """The model that the first stages start from."""
    judge: ModelName = ""
    """The feedback model of stages that label."""
    prompts: PromptsPath = ""
    """Prompts of stages that generate."""
    constitution: FilePath = ""
    """Constitution YAML of stages that label."""
    heldout_prompts: PromptsPath = ""
    """Prompts of evaluations."""
    seed: int = Field(0, ge=0, lt=2**31)
    data: ReadConfig = ReadConfig()
    """Column and split of the prompts."""
    label: dict[str, Any] = Field(default_factory=dict)
    """Settings of `solon label` for stages that label: `feedback`, `judging`, `write`."""
    stages: tuple[SerializeAsAny[AlignStage], ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check, including that every stage finds its inputs. Raises InputError."""
        path = Path(path)
        raw = read_toml(path, what="alignment file")
        return cls.of(raw, path.parent, where=f"alignment file {path}", overrides=overrides)

    @classmethod
    def of(cls, raw: dict[str, Any], folder: Path, *, where: str, overrides: Sequence[str] = ()) -> Self:
        """The same from the content of a file in a folder. where: begins its messages."""
        for override in overrides:
            key, value, _ = parse_override(override)
            if key.partition(".")[0] == "stages":
                raise InputError(f"--set {key}: stages are set in the file, expected another key; change the file")
            put(raw, key, value, override)
        stages = raw.get("stages")
        if not isinstance(stages, list) or not stages:
            raise InputError(f"{where} has no stages, expected [[stages]] with a type; add one")
        raw["stages"] = unrolled(stages, where)
        _resolve(raw, folder)
        for place in places_of_secrets(raw):
            raise InputError(f"{where}: `{place}` {HOLDS_A_SECRET}")
        raw["stages"] = tuple(_stage(one, f"{where}: stages[{n}]") for n, one in enumerate(raw["stages"], 1))
        try:
            file = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{where}: {describe_invalid(cls, error)}") from None
        file = file.model_copy(update={"stages": _named(file.stages, where)})
        for number in range(len(file.stages)):
            file.sources(number)
        return file

    def sources(self, number: int) -> dict[str, Source]:
        """The inputs of a stage, by role. Raises InputError for one that there is not."""
        stage, earlier = self.stages[number], self.stages[:number]
        found = {}
        for role, given in stage.takes(self, earlier).items():
            kind = role.partition(".")[0]
            product = SERVES.get(kind, kind)
            place = f"stages[{number + 1}] ({stage.name})"
            makers = [one for one in earlier if product in one.makes]
            named = next((one for one in makers if one.name == given), None)
            if named is not None:
                found[role] = Source(role=role, stage=named.name, product=product)
            elif given in {one.name for one in self.stages} and product in PRODUCTS:
                raise InputError(
                    f"{place} takes its {kind} from the stage {given!r}, which makes no {product} before it; expected "
                    f"one of {', '.join(one.name for one in makers) or 'the earlier stages, and none makes it'}"
                )
            elif given:
                found[role] = Source(role=role, path=given)
            elif makers and kind not in SERVES:
                found[role] = Source(role=role, stage=makers[-1].name, product=product)
            elif own := str(getattr(self, kind, "") or ""):
                found[role] = Source(role=role, path=own)
            else:
                raise InputError(f"{place} takes {_what(kind)}, and there is none; {_remedy(kind)}")
        return found


def _what(role: str) -> str:
    return f"a file of {role}" if role in ("preferences", "demonstrations", "ratings") else f"the key `{role}`"


def _remedy(role: str) -> str:
    if role == "judge":
        return 'set judge, or judge = "NAME" of a stage of type reward_model in this stage'
    makers = sorted(kind for kind, stage in known_stages().items() if role in stage.makes)
    stage = f"add a stage of type {' or '.join(makers)} before it, or " if makers and role in PRODUCTS else ""
    return f"{stage}set {role}"


def _stage(raw: Any, place: str) -> AlignStage:
    known = known_stages()
    if not isinstance(raw, Mapping) or not isinstance(raw.get("type"), str):
        raise InputError(f"{place} has no type, expected one of {', '.join(sorted(known))}; add type")
    if raw["type"] not in known:
        raise InputError(
            f"{place} has the type {raw['type']!r}, expected one of {', '.join(sorted(known))}"
            f"{nearest(raw['type'], known)}"
        )
    kind = known[raw["type"]]
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        raise InputError(f"{place} ({raw['type']}): {describe_invalid(kind, error)}") from None


def _named(stages: Sequence[AlignStage], where: str) -> tuple[AlignStage, ...]:
    """Every stage with a name: its own, or its type with a number from the second of the type on."""
    found: list[AlignStage] = []
    for stage in stages:
        taken = {one.name for one in found}
        number = sum(one.type == stage.type for one in found) + 1
        default = stage.type if number == 1 else f"{stage.type}-{number}"
        found.append(stage if stage.name else stage.model_copy(update={"name": default}))
        if found[-1].name in taken:
            raise InputError(f"{where}: two stages are named {found[-1].name!r}, expected one; rename one")
    return tuple(found)


def _resolve(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths in a parsed file absolute, where they exist beside it; names of stages stay."""
    known = known_stages()
    stages = [one for one in raw["stages"] if isinstance(one, dict)]
    named = {str(one.get(key)) for one in stages for key in ("name", "type") if one.get(key)}

    def absolute(_: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute("", one) for one in value]
        if not isinstance(value, str) or not value or value in named or is_given_name(value):
            return value
        beside = (folder / Path(value).expanduser()).absolute()
        return str(beside) if beside.exists() else value

    for key in PATHS:
        rewrite(raw, key, absolute)
    for section, model in LABEL_SECTIONS.items():
        for key in paths_in(model):
            rewrite(raw, f"label.{section}.{key}", absolute)
    for one in stages:
        if one.get("type") in known:
            for key in paths_in(known[one["type"]]):
                rewrite(one, key, absolute)
        if isinstance(one.get("run"), dict):
            for key in paths_in(RunFile):
                rewrite(one["run"], key, absolute)


def paths_in(model: type[BaseModel]) -> tuple[str, ...]:
    """Keys of a model's fields that name a model or a file."""
    return marked(model, NamesModel) + marked(model, NamesFile)
