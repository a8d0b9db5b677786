"""The run file: one TOML, four required keys, every section checked by the class that owns it.

    policy = "org/model"            # Hugging Face directory or hub name
    judge = "org/quantised-judge"
    prompts = "prompts.jsonl"
    constitution = "constitution.yaml"

Unknown keys are refused with the nearest known one. Relative paths are relative to the run file, those of
`--set` to the current directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.config.sections import EngineSection, EvaluateSection, LearnSection, RolloutSection, Section, WatchSection
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.panels.selective import reward_clip
from solon.files.data_config import DataConfig
from solon.files.overrides import parse_override, put
from solon.files.row_sources import is_dataset_name
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid, with_nothing
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.pipeline.publication import PublishConfig
from solon.recovery.guard import RecoveryConfig
from solon.redaction import places_of_secrets, redacted

MODELS = (
    "policy",
    "judge",
    "evaluate.audit_judge",
    "watch.audit_judge",
    "feedback.cascade.judge",
    "feedback.jury.judges",
    "feedback.select.proxy",
    "feedback.semantic.model",
)
"""Keys that name a model, or several: a directory, or a hub name."""
FILES = (
    "prompts",
    "constitution",
    "evaluate.prompts",
    "rollout.chat_template",
    "judging.chat_template",
    "feedback.calibration",
    "feedback.cascade.calibration",
    "feedback.cache.path",
    "watch.canary",
)
"""Keys that name a file."""
PROMPTS = ("prompts", "evaluate.prompts")
"""Keys that may name a dataset of the hub instead."""


RECORDED = {"hash", "constitution_hash", "solon"}
"""Keys by which the `config.json` of a run is known."""
HOLDS_A_SECRET = (
    "holds what looks like a secret (it is not shown), expected none in a run file; put it into an environment "
    "variable or a file of its own"
)


class RunFile(Section):
    """A whole run. `RunFile.load("run.toml", overrides=["learn.epochs=1"])`"""

    policy: str = Field(min_length=1)
    """The model to align."""
    judge: str = Field(min_length=1)
    """The feedback model."""
    prompts: str = Field(min_length=1)
    """Training prompts: a file, folder, glob, saved dataset or hub dataset; `docs/prompts.md` lists the formats."""
    constitution: str = Field(min_length=1)
    """Constitution YAML."""

    steps: int = Field(100, ge=1)
    """Optimiser steps (batches)."""
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_every: int = Field(10, ge=0)
    """Steps between checkpoints; 0: only at the end. A learner that is lost trains the steps since the last one again,
    a driver that is lost generates and labels them again as well."""
    checkpoint_first: int = Field(1, ge=0)
    """Steps before the first checkpoint of a run, so that an early end loses little and a disk that is too small shows
    at once; 0: the first comes after `checkpoint_every` steps."""
    checkpoint_keep: int = Field(3, ge=0)
    """How many checkpoints stay; 0: all."""
    checkpoint_url: str = ""
    """A second place for them, any URL that fsspec knows, s3://bucket/folder say; its credentials come from the
    environment."""
    data: DataConfig = DataConfig()
    """How prompts are read, and what becomes of those that do not fit."""
    rollout: RolloutSection = RolloutSection()
    feedback: FeedbackConfig = FeedbackConfig()
    judging: EngineSection = EngineSection()
    """The judge's engine."""
    learn: LearnSection = LearnSection()
    ledger: LedgerConfig = LedgerConfig()
    staleness: StalenessConfig = StalenessConfig()
    publish: PublishConfig = PublishConfig()
    evaluate: EvaluateSection = EvaluateSection()
    watch: WatchSection = WatchSection()
    recovery: RecoveryConfig = RecoveryConfig()

    @field_validator("checkpoint_url")
    @classmethod
    def _no_credentials(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("checkpoint_url holds credentials or a query, expected a plain URL; set its environment")
        return url

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, raw: Any) -> Any:
        # A run file is written out with every run.
        for place in places_of_secrets(raw):
            raise ValueError(f"`{place}` {HOLDS_A_SECRET}")
        return raw

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_in_range(cls, raw: Any) -> Any:
        for place in _out_of_range(raw):
            raise ValueError(f"`{place}` is infinite, huge or not a number, expected a finite one; set or remove it")
        return raw

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_said(cls, raw: Any) -> Any:
        return with_nothing(cls, raw)

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.rollout.max_tokens >= self.rollout.max_model_len:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} leaves no room for a prompt in "
                f"rollout.max_model_len = {self.rollout.max_model_len}; lower max_tokens"
            )
        if self.watch.action == "raise_kl" and not self.learn.kl_coefficient:
            raise ValueError("watch.action = 'raise_kl' needs learn.kl_coefficient above 0, got 0; set it")
        if self.feedback.min_valid > self.rollout.group_size:
            raise ValueError(
                f"feedback.min_valid = {self.feedback.min_valid} exceeds rollout.group_size = "
                f"{self.rollout.group_size}; lower min_valid"
            )
        bound = reward_clip(self.feedback.margin_clip, self.feedback.select)
        if self.feedback.select.proxy and self.learn.reward_clip is not None and self.learn.reward_clip < bound:
            raise ValueError(
                f"learn.reward_clip = {self.learn.reward_clip:g} would cut the corrected rewards of "
                f"feedback.select.proxy, which reach {bound:g} nats and are right only on average; remove reward_clip"
            )
        if self.feedback.task == "pairwise" and self.rollout.group_size < 2:
            raise ValueError("feedback.task = 'pairwise' needs rollout.group_size >= 2")
        if self.learn.advantages == "group" and self.rollout.group_size < 2:
            raise ValueError("learn.advantages = 'group' needs rollout.group_size >= 2")
        return self

    @model_validator(mode="after")
    def _one_auditor(self) -> Self:
        names = {self.evaluate.audit_judge, self.watch.audit_judge} - {""}
        if len(names) > 1:
            raise ValueError(
                f"evaluate.audit_judge = {self.evaluate.audit_judge!r} and watch.audit_judge = "
                f"{self.watch.audit_judge!r}, expected one auditing judge for both; name the same model"
            )
        return self

    @property
    def auditor(self) -> str:
        """The model that audits and evaluates but never rewards; empty: none."""
        return self.watch.audit_judge or self.evaluate.audit_judge

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows so many committed steps; the one at the end is another matter."""
        return bool(self.checkpoint_every) and (step % self.checkpoint_every == 0 or step == self.checkpoint_first)

    @property
    def hash(self) -> str:
        """sha256 of the resolved configuration."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def num_judges(self) -> int:
        """Judge engines, the auditing one included."""
        return self.judging.num_actors + bool(self.auditor)

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
        """Read, override and check. Raises InputError; unknown keys come with the nearest known one.

        A run's own `config.json` is a run file as well: what it says of the run that was is left out.
        """
        path = Path(path)
        raw = read_toml(path, what="run file")
        if raw.keys() >= RECORDED:
            raw = {key: value for key, value in raw.items() if key in cls.model_fields}
        for key in (*MODELS, *FILES):
            *sections, last = key.split(".")
            place: Any = raw
            for section in sections:
                place = place.get(section) if isinstance(place, dict) else None
            if isinstance(place, dict) and last in place:
                place[last] = _resolved(key, place[last], path.parent)
        for override in overrides:
            _override(raw, override)
        return cls.parse(raw, source=str(path))

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, source: str) -> Self:
        """Check an already read mapping. Raises InputError."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"run file {source}: {describe_invalid(cls, error)}") from None


def _resolved(key: str, value: Any, folder: Path) -> Any:
    """Paths in a value; what is no text is left to whoever checks it."""
    if isinstance(value, list):
        return [_resolved(key, item, folder) for item in value]
    return _resolve(key, value, folder) if isinstance(value, str) else value


def _resolve(key: str, value: str, folder: Path) -> str:
    """A path relative to a folder; `nursery:` names stay, and hub names of models that are no path there."""
    if not value or value.startswith("nursery:"):
        return value
    if redacted(value) != value:  # as a path it would not be known as one any more
        raise InputError(f"run file: `{key}` {HOLDS_A_SECRET}")
    try:
        path = folder / Path(value).expanduser()
        may_be_hub_name = (key in MODELS and looks_like_hub_name(value)) or (key in PROMPTS and is_dataset_name(value))
        if may_be_hub_name and not path.exists():
            return value
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"run file: `{key}` = {value!r} is no path: {error}; check it") from None


def looks_like_hub_name(value: str) -> bool:
    """`org/model`, which is not a path that exists here."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value) is not None and not value.startswith(".")


def _override(raw: dict[str, Any], text: str) -> None:
    key, value, plain = parse_override(text)
    if key in (*MODELS, *FILES):
        value = _resolved(key, value if isinstance(value, str | list) else plain, Path.cwd())
    put(raw, key, value, text)


def _out_of_range(raw: Any, place: str = "") -> Iterator[str]:
    """Places of numbers that JSON, and most arithmetic, has no use for."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _out_of_range(value, f"{place}.{key}" if place else str(key))
    elif (isinstance(raw, float) and not math.isfinite(raw)) or (isinstance(raw, int) and abs(raw) >= 2**63):
        yield place
