"""Stages that are repeated: `iterate` stands for its stages, once for each round.

    [[stages]]
    type = "iterate"
    rounds = 3

    [[stages.stages]]
    type = "preferences"
    max_prompts = 200

    [[stages.stages]]
    type = "dpo"

is `round-1-preferences`, `round-1-dpo`, `round-2-preferences`, ...: every round starts from the policy of the round
before it, since a stage takes the latest policy. Stages that are named within a round are those of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError, field_validator

from cluster.align.stages import known_stages
from cluster.config.sections import Section
from solon.errors import InputError
from solon.files.validation import describe_invalid

TYPE = "iterate"


class Rounds(Section):
    """`{ type = "iterate", rounds = 3, stages = [...] }`"""

    type: str
    name: str = "round"
    """Begins the names of the stages: `NAME-1-dpo`."""
    rounds: int = Field(ge=1, le=100)
    fresh_prompts: bool = True
    """Stages with max_prompts take the prompts that follow those of the round before; from the beginning again behind
    the last one."""
    stages: tuple[dict[str, Any], ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _not_nested(cls, stages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if any(one.get("type") == TYPE for one in stages):
            raise ValueError("a round holds another `iterate`, expected stages; put the rounds one after the other")
        return stages


def unrolled(stages: Sequence[Any], where: str) -> list[Any]:
    """The stages with the rounds written out. Raises InputError."""
    found: list[Any] = []
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, Mapping) or stage.get("type") != TYPE:
            found.append(stage)
            continue
        try:
            rounds = Rounds.model_validate(dict(stage))
        except ValidationError as error:
            raise InputError(f"{where}: stages[{number}] ({TYPE}): {describe_invalid(Rounds, error)}") from None
        for turn in range(rounds.rounds):
            found += _one_round(rounds, turn)
    return found


def _takes_prompts(stage: Mapping[str, Any]) -> bool:
    kind = known_stages().get(str(stage.get("type")))
    if kind is None or "skip_prompts" not in kind.model_fields:
        return False
    return all(type(one) is int for one in (_most_prompts(stage), stage.get("skip_prompts", 0)))


def _most_prompts(stage: Mapping[str, Any]) -> Any:
    default = known_stages()[str(stage["type"])].model_fields["max_prompts"].default
    return stage.get("max_prompts", default)


def _one_round(rounds: Rounds, turn: int) -> list[dict[str, Any]]:
    """turn: from 0."""
    counts: dict[str, int] = {}
    names = []
    for stage in rounds.stages:
        kind = str(stage.get("type"))
        counts[kind] = counts.get(kind, 0) + 1
        default = kind if counts[kind] == 1 else f"{kind}-{counts[kind]}"
        names.append(str(stage.get("name") or default))
    ours = {name: f"{rounds.name}-{turn + 1}-{name}" for name in names}

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(one) for one in value]
        return ours.get(value, value) if isinstance(value, str) else value

    found = []
    for stage, name in zip(rounds.stages, names, strict=True):
        one = {key: value if key == "type" else renamed(value) for key, value in stage.items()}
        if rounds.fresh_prompts and _takes_prompts(stage):
            one["skip_prompts"] = stage.get("skip_prompts", 0) + turn * _most_prompts(stage)
        found.append({**one, "name": ours[name]})
    return found
