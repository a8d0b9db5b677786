"""The constitution: principles, the questions that a judge is asked about them, and a hash of it all.

A YAML file (`schema: solon.constitution/v1`). It is checked when loaded, and its hash travels with every
label, so that it is always known which text a label was given under.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solon.errors import InputError
from solon.records import Prompt
from solon.validation import describe_invalid

SCHEMA = "solon.constitution/v1"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AppliesIf(_Section):
    """Which prompts a principle speaks about, by their tags; empty means all."""

    tags_any: tuple[str, ...] = ()
    tags_none: tuple[str, ...] = ()

    def __call__(self, prompt: Prompt) -> bool:
        tags = set(prompt.tags)
        return (not self.tags_any or bool(tags & set(self.tags_any))) and not tags & set(self.tags_none)


class Principle(_Section):
    """One rule of good behaviour, and how to ask about it.

    At least one question is required: `pairwise_question` (which of two answers is better) or
    `pointwise_question` (a yes/no question about one answer, yes is good).
    """

    id: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: Literal["harmless", "helpful", "honest", "style", "safety"] = "helpful"
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    applies_if: AppliesIf = AppliesIf()
    pairwise_question: str = ""
    pointwise_question: str = ""
    critique_request: str = ""
    revision_request: str = ""

    @model_validator(mode="after")
    def _has_a_question(self) -> Self:
        if not (self.pairwise_question.strip() or self.pointwise_question.strip()):
            raise ValueError(f"principle {self.id!r} has no question, expected pairwise_question or pointwise_question")
        return self


class Constitution(_Section):
    """A named, versioned list of principles. `Constitution.load("constitution.yaml").principles[0].id`"""

    schema_: Literal["solon.constitution/v1"] = Field(alias="schema")
    id: str
    version: str
    language: str = "en"
    license: str = ""
    description: str = ""
    preamble: str = ""
    """Stands first in every question to a judge."""
    principles: tuple[Principle, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        seen: set[str] = set()
        for principle in self.principles:
            if principle.id in seen:
                raise ValueError(f"principle id {principle.id!r} stands twice, expected unique ids; rename one")
            seen.add(principle.id)
        return self

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: comments and key order do not change it, any text does."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def for_task(self, task: Literal["pairwise", "pointwise"]) -> tuple[Principle, ...]:
        """The principles that can be asked in this form.

        Raises InputError when one of them cannot: a principle silently left out would not be trained.
        """
        lacking = [p.id for p in self.principles if not getattr(p, f"{task}_question").strip()]
        if lacking:
            raise InputError(
                f"constitution {self.id!r}: {', '.join(lacking)} has no {task}_question, expected one for every "
                f"principle because feedback.task = {task!r}; add it or change feedback.task"
            )
        return self.principles

    @classmethod
    def load(cls, path: str | Path) -> Constitution:
        """Read and check a file. Raises InputError with the place and the mend."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise InputError(f"constitution {path} does not exist; check the path") from None
        except (OSError, ValueError) as error:
            raise InputError(f"constitution {path} cannot be read: {error}") from None
        raw = _parse(text, path)
        if not isinstance(raw, dict):
            raise InputError(f"constitution {path} holds a {type(raw).__name__}, expected a mapping with `principles`")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"constitution {path}: {describe_invalid(cls, error)}") from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice: one of the two texts would silently not count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key `{key.value}` stands twice; remove one", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:  # JSON spells a character beyond 16 bits as two escapes, which PyYAML leaves apart
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "half a character (a lone surrogate), expected text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _parse(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"constitution {path}{where}: {error.problem or error.context}; mend the YAML") from None
    except RecursionError:
        raise InputError(f"constitution {path} is nested too deeply, expected three levels at most") from None
    except Exception as error:
        # A scalar that its tag cannot hold (a date without such a day, a number of too many digits): PyYAML
        # lets through whatever Python raises for it.
        what = " ".join(str(error).split())
        raise InputError(f"constitution {path} is not YAML: {what}; put texts and dates in quotes") from None
