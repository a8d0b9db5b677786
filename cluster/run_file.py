"""The run file: one TOML, four required keys, every section checked by the class that owns it.

    policy = "org/model"            # Hugging Face directory or hub name
    judge = "org/quantised-judge"
    prompts = "prompts.jsonl"
    constitution = "constitution.yaml"

Unknown keys are refused with the nearest known one. Relative paths are relative to the run file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from learners.config import LearnConfig
from solon.engines.base import EngineConfig, EngineOptions
from solon.errors import InputError, nearest
from solon.feedback.config import FeedbackConfig
from solon.ledger import LedgerConfig
from solon.staleness import StalenessConfig
from solon.weights import PublishConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSection(EngineOptions):
    """An engine's options and the resources of the actors that host it."""

    num_actors: int = Field(1, ge=1)
    """Engines of this kind, each its own Ray actor."""
    num_cpus: float = Field(1.0, ge=0)
    """Ray CPUs of one actor."""
    num_gpus: float = Field(0.0, ge=0)
    """Ray GPUs of one actor; below 1, several share a device and must share its memory."""

    def engine(self, model: str, *, seed: int) -> EngineConfig:
        """The configuration of the engine itself."""
        return EngineConfig(model=model, seed=seed, **self.model_dump(include=set(EngineOptions.model_fields)))


class RolloutSection(EngineSection):
    """Generation: the engine, and how answers are drawn."""

    group_size: int = Field(8, ge=1)
    """Answers per prompt."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(1.0, gt=0)


class LearnSection(LearnConfig):
    """Learning, and the resources of the learner's actor."""

    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)


class EvaluateSection(_Section):
    """Held-out evaluation before the first and after the last step, by an evaluator that never rewards."""

    prompts: str = ""
    """Held-out prompts; empty: no evaluation."""
    evaluator: Literal["", "nursery", "judge"] = ""
    """`nursery`: the tiny language's programmatic oracles. `judge`: the feedback questions, asked of another
    judge, `audit_judge`."""
    audit_judge: str = ""
    max_prompts: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.prompts) != bool(self.evaluator):
            raise ValueError("evaluate needs both prompts and evaluator, or neither")
        if (self.evaluator == "judge") != bool(self.audit_judge):
            raise ValueError("evaluate.audit_judge goes with evaluate.evaluator = 'judge'; set both or neither")
        return self


class RunFile(_Section):
    """A whole run. `RunFile.load("run.toml", overrides=["learn.epochs=1"])`"""

    policy: str
    """The model to align."""
    judge: str
    """The feedback model."""
    prompts: str
    """Training prompts: JSONL, Parquet or a saved dataset."""
    constitution: str
    """Constitution YAML."""

    steps: int = Field(100, ge=1)
    """Optimiser steps (batches)."""
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    rollout: RolloutSection = RolloutSection()
    feedback: FeedbackConfig = FeedbackConfig()
    judging: EngineSection = EngineSection()
    """The judge's engine."""
    learn: LearnSection = LearnSection()
    ledger: LedgerConfig = LedgerConfig()
    staleness: StalenessConfig = StalenessConfig()
    publish: PublishConfig = PublishConfig()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.rollout.max_tokens >= self.rollout.max_model_len:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} leaves no room for a prompt in "
                f"rollout.max_model_len = {self.rollout.max_model_len}; lower max_tokens"
            )
        if self.feedback.min_valid > self.rollout.group_size:
            raise ValueError(
                f"feedback.min_valid = {self.feedback.min_valid} exceeds rollout.group_size = "
                f"{self.rollout.group_size}; lower min_valid"
            )
        if self.feedback.task == "pairwise" and self.rollout.group_size < 2:
            raise ValueError("feedback.task = 'pairwise' needs rollout.group_size >= 2")
        if self.learn.advantages == "group" and self.rollout.group_size < 2:
            raise ValueError("learn.advantages = 'group' needs rollout.group_size >= 2")
        return self

    @property
    def hash(self) -> str:
        """sha256 of the resolved configuration."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def num_judges(self) -> int:
        """Judge engines, the auditing one included."""
        return self.judging.num_actors + bool(self.evaluate.audit_judge)

    @property
    def gpus(self) -> float:
        """Ray GPUs that the run asks for."""
        return (
            self.rollout.num_gpus * self.rollout.num_actors
            + self.judging.num_gpus * self.num_judges
            + self.learn.num_gpus
        )

    @property
    def cpus(self) -> float:
        """Ray CPUs that the run asks for."""
        return (
            self.rollout.num_cpus * self.rollout.num_actors
            + self.judging.num_cpus * self.num_judges
            + self.learn.num_cpus
        )

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check. Raises InputError; unknown keys come with the nearest known one."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"run file {path} does not exist; check the path") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"run file {path} cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"run file {path} is not TOML: {error}") from None
        for key in ("policy", "judge", "prompts", "constitution"):
            if isinstance(raw.get(key), str):
                raw[key] = _resolve(raw[key], path.parent)
        section = raw.get("evaluate")
        if isinstance(section, dict):
            for key in ("prompts", "audit_judge"):
                if isinstance(section.get(key), str):
                    section[key] = _resolve(section[key], path.parent)
        for override in overrides:
            _override(raw, override)
        return cls.parse(raw, source=str(path))

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, source: str) -> Self:
        """Check an already read mapping. Raises InputError."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            parts = [_readable(cls, item) for item in error.errors()]
            raise InputError(f"run file {source}: {'; '.join(parts)}") from None


def _resolve(value: str, folder: Path) -> str:
    """A path relative to the run file, when there is one; hub names and `nursery:` names stay."""
    if not value or value.startswith("nursery:") or Path(value).is_absolute():
        return value
    value = str(Path(value).expanduser())
    candidate = folder / value
    return str(candidate.resolve()) if candidate.exists() or not looks_like_hub_name(value) else value


def looks_like_hub_name(value: str) -> bool:
    """`org/model`, which is not a path that exists here."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value) is not None and not value.startswith(".")


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set got {text!r}, expected key=value as in --set learn.epochs=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is text
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"--set got {text!r}, but {section!r} is a value, not a section")
    place[last] = parsed


def _readable(model: type[BaseModel], item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key `{place}`{nearest(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return f"`{place}` is missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f", got {item['input']!r}"
    return f"`{place}`: {message}{given}" if place else message


def _known_keys(model: type[BaseModel], sections: Sequence[int | str]) -> list[str]:
    for section in sections:
        field = model.model_fields.get(str(section))
        if field is None or not isinstance(field.annotation, type):
            return []
        if not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
