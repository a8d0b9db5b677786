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
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.config.pools import PoolSpec, changes, learner_pool, pool_of
from cluster.config.sections import EngineSection, EvaluateSection, LearnSection, RolloutSection, Section, WatchSection
from solon.elasticity.config import ElasticityConfig
from solon.engines.adapter_names import MOST_RANK
from solon.engines.base import AdapterRoom
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.panels.selective import reward_clip
from solon.files.data_config import DataConfig
from solon.files.marks import (
    FilePath,
    MayChange,
    ModelName,
    NamesFile,
    NamesModel,
    NamesPrompts,
    PromptsPath,
    is_exactly,
    marked,
    rewrite,
)
from solon.files.overrides import parse_override, put
from solon.files.row_sources import is_dataset_name
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid, with_nothing
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.models.given_names import is_given_name
from solon.pipeline.publication import PublishConfig
from solon.recovery.guard import RecoveryConfig
from solon.redaction import places_of_secrets, redacted

RECORDED = {"hash", "constitution_hash", "solon"}
"""Keys that identify the `config.json` of a run."""
HOLDS_A_SECRET = (
    "holds what looks like a secret (it is not shown), expected none in this file; put it into an environment "
    "variable or a file of its own"
)


class RunFile(Section):
    """A whole run. `RunFile.load("run.toml", overrides=["learn.epochs=1"])`"""

    policy: ModelName = Field(min_length=1)
    """The model to align."""
    judge: ModelName = Field(min_length=1)
    """The feedback model."""
    prompts: PromptsPath = Field(min_length=1)
    """Training prompts: a file, folder, glob, saved dataset or hub dataset; `docs/prompts.md` lists the formats."""
    constitution: FilePath = Field(min_length=1)
    """Constitution YAML."""

    steps: Annotated[int, MayChange()] = Field(100, ge=1, lt=2**31)
    """Optimiser steps (batches)."""
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_every: Annotated[int, MayChange()] = Field(10, ge=0)
    """Steps between checkpoints; 0: only at the end. After the loss of the learner, the steps since the last checkpoint
    are trained again; after the loss of the driver, they are generated and labelled again as well."""
    checkpoint_first: Annotated[int, MayChange()] = Field(1, ge=0)
    """Steps before the first checkpoint of a run, so that an early end loses little and a disk that is too small is
    found at once; 0: the first comes after `checkpoint_every` steps."""
    checkpoint_keep: Annotated[int, MayChange()] = Field(3, ge=0)
    """How many checkpoints are kept; 0: all."""
    checkpoint_async: Annotated[bool, MayChange()] = True
    """Train while a checkpoint is written. The learner's state is copied to the memory of its machine first, 12 bytes
    for each trained parameter; false: no copy, and no step runs until the checkpoint is complete."""
    checkpoint_url: Annotated[str, MayChange()] = ""
    """A second place for checkpoints: any URL that fsspec knows, such as s3://bucket/folder. Credentials come from the
    environment."""
    data: DataConfig = DataConfig()
    """How prompts are read, and how unusable prompts are handled."""
    rollout: RolloutSection = RolloutSection()
    feedback: FeedbackConfig = FeedbackConfig()
    judging: EngineSection = EngineSection()
    """The judge's engine."""
    learn: LearnSection = LearnSection()
    ledger: LedgerConfig = LedgerConfig()
    staleness: StalenessConfig = StalenessConfig()
    publish: Annotated[PublishConfig, MayChange(("timeout_s", "engines_at_once"))] = PublishConfig()
    evaluate: EvaluateSection = EvaluateSection()
    watch: WatchSection = WatchSection()
    recovery: Annotated[RecoveryConfig, MayChange()] = RecoveryConfig()
    elasticity: Annotated[ElasticityConfig, MayChange()] = ElasticityConfig()
    """How pools with a `max_actors` follow the load, and how workers leave a machine that goes."""

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
        # Every run writes its run file.
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
        self._require_groups()
        self._require_adapters()
        if self.feedback.min_valid > self.rollout.group_size:
            raise ValueError(
                f"feedback.min_valid = {self.feedback.min_valid} exceeds rollout.group_size = "
                f"{self.rollout.group_size}; raise rollout.group_size, or lower feedback.min_valid"
            )
        bound = reward_clip(self.feedback.margin_clip, self.feedback.select)
        if self.feedback.select.proxy and self.learn.reward_clip is not None and self.learn.reward_clip < bound:
            raise ValueError(
                f"learn.reward_clip = {self.learn.reward_clip:g} would cut the corrected rewards of "
                f"feedback.select.proxy, which reach {bound:g} nats and are right only on average; remove reward_clip"
            )
        return self

    def _require_adapters(self) -> None:
        """Adapters are published alone only where the learner trains them and the engines take them."""
        if self.publish.way == "merged":
            if self.rollout.base_model:
                raise ValueError(
                    "rollout.base_model with publish.way = 'merged', which replaces all weights of the engines; set "
                    "publish.way = 'adapter', or remove base_model"
                )
            return
        lora = self.learn.lora
        if lora is None:
            raise ValueError(
                "publish.way = 'adapter' needs adapters, got a learner that trains all weights; add [learn.lora] with "
                "r = 16, or set publish.way = 'merged'"
            )
        if lora.r > MOST_RANK:
            raise ValueError(f"learn.lora.r = {lora.r}, expected at most {MOST_RANK} with publish.way = 'adapter'")
        if self.rollout.backend != "vllm":
            raise ValueError(
                f"publish.way = 'adapter' with rollout.backend = {self.rollout.backend!r}, expected 'vllm': the plain "
                "engine holds one version; change one of them"
            )
        pool = self.workers.get(self.policy_pool)
        if pool is not None and pool.num_ranks > 1:
            raise ValueError(
                f"publish.way = 'adapter' with engines of {pool.num_ranks} ranks, expected 1: they take whole weights "
                "only; set rollout.tensor_parallel (num_ranks of its pool) = 1, or publish.way = 'merged'"
            )

    @property
    def adapter_room(self) -> AdapterRoom | None:
        """Room for versions in the rollout engines; None: they get all weights."""
        lora = self.learn.lora
        if self.publish.way == "merged" or lora is None:
            return None
        named = () if isinstance(lora.target_modules, str) else lora.target_modules
        layers = tuple(dict.fromkeys(name.rpartition(".")[2] for name in named))
        return AdapterRoom(rank=lora.r, versions=self.publish.max_loras, layers=layers)

    def _require_groups(self) -> None:
        if self.rollout.group_size > 1:
            return
        for key, value in (("feedback.task", self.feedback.task), ("learn.advantages", self.learn.advantages)):
            if value in ("pairwise", "group"):
                raise ValueError(f"rollout.group_size = 1, expected at least 2 for {key} = {value!r}; raise it")

    @model_validator(mode="after")
    def _auditors_agree(self) -> Self:
        self.require_one_auditor()
        return self

    def require_one_auditor(self) -> None:
        """Evaluation and audit have one pool, hence one model. Raises ValueError."""
        names = {self.evaluate.audit_judge, self.watch.audit_judge} - {""}
        if len(names) > 1:
            raise ValueError(
                f"evaluate.audit_judge = {self.evaluate.audit_judge!r} and watch.audit_judge = "
                f"{self.watch.audit_judge!r}, expected one auditing judge for both; name the same model"
            )

    @property
    def auditor(self) -> str:
        """The model that audits and evaluates but never rewards; empty: none."""
        return self.watch.audit_judge or self.evaluate.audit_judge

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows this number of committed steps; the final checkpoint is separate."""
        return bool(self.checkpoint_every) and (step % self.checkpoint_every == 0 or step == self.checkpoint_first)

    @property
    def hash(self) -> str:
        """sha256 of the resolved configuration."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def workers(self) -> Mapping[str, PoolSpec]:
        """Every pool of workers that the run needs, by name: four keys name the engines, the judges, the learner and
        the optional auditor."""
        pools = [
            pool_of("rollout", self.rollout.base_model or self.policy, self.rollout, name="rollout", section="rollout"),
            pool_of("judge", self.judge, self.judging, name="judge", section="judging"),
            learner_pool(self.policy, self.learn),
        ]
        if self.auditor:
            alone = self.judging.model_copy(update={"num_actors": 1, "max_actors": 0})
            audit = pool_of("audit", self.auditor, alone, name="audit-judge", section="judging")
            pools.append(audit.called("audit-judge", "judging", is_numbered=False))
        return {pool.name: pool for pool in pools}

    @property
    def policy_pool(self) -> str:
        """The pool whose engines receive the trained weights."""
        return "rollout"

    @property
    def judge_pool(self) -> str:
        """The pool whose judges reward."""
        return "judge"

    def with_pools(self, pools: Mapping[str, PoolSpec]) -> Self:
        """The same run with these pools built or placed differently."""
        update: dict[str, Any] = {}
        for pool in pools.values():
            section = update.get(pool.section, getattr(self, pool.section))
            update[pool.section] = section.model_copy(update=changes(section, pool))
        return self.model_copy(update=update)

    def with_rollout(self, rollout: RolloutSection) -> Self:
        """The same run with other settings of generation."""
        return self.model_copy(update={"rollout": rollout})

    @property
    def auditors(self) -> Mapping[str, PoolSpec]:
        """The pool that audits or evaluates, by the key that names it."""
        pool = self.workers.get("audit-judge")
        keys = {"evaluate.audit_judge": self.evaluate.audit_judge, "watch.audit_judge": self.watch.audit_judge}
        return {key: pool for key, model in keys.items() if model and pool is not None}

    @property
    def gpus(self) -> float:
        """Ray GPUs that the run requests."""
        return sum(pool.size * pool.num_ranks * pool.placement.num_gpus for pool in self.workers.values())

    @property
    def cpus(self) -> float:
        """Ray CPUs that the run requests."""
        return sum(pool.size * pool.num_ranks * pool.placement.num_cpus for pool in self.workers.values())

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check. Raises InputError; unknown keys come with the nearest known one.

        A run's own `config.json` is also a run file: its record of the finished run is ignored.
        """
        path = Path(path)
        raw = read_toml(path, what="run file")
        if raw.keys() >= RECORDED:
            raw = {key: value for key, value in raw.items() if key in cls.model_fields}
        cls.resolve(raw, path.parent)
        for override in overrides:
            cls.override(raw, override)
        return cls.parse(raw, source=str(path))

    @classmethod
    def resolve(cls, raw: dict[str, Any], folder: Path) -> None:
        """Make the paths in a parsed file absolute; relative ones are relative to this folder."""
        for key in places(cls):
            rewrite(raw, key, lambda place, value: _resolved(cls, place, value, folder))

    @classmethod
    def override(cls, raw: dict[str, Any], text: str) -> None:
        """Set `key=value` in a parsed file; a path is relative to the current directory."""
        key, value, plain = parse_override(text)
        if is_exactly(key, places(cls)):
            value = _resolved(cls, key, value if isinstance(value, str | list) else plain, Path.cwd())
        put(raw, key, value, text)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, source: str) -> Self:
        """Validate a parsed mapping. Raises InputError."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"run file {source}: {describe_invalid(cls, error)}") from None


def places(model: type[RunFile]) -> tuple[str, ...]:
    """Keys that name a model or a file."""
    return marked(model, NamesModel) + marked(model, NamesFile)


def _resolved(model: type[RunFile], key: str, value: Any, folder: Path) -> Any:
    """Paths in a value; other types are left to the type check."""
    if isinstance(value, list):
        return [_resolved(model, key, item, folder) for item in value]
    return _resolve(model, key, value, folder) if isinstance(value, str) else value


def _resolve(model: type[RunFile], key: str, value: str, folder: Path) -> str:
    """A path relative to a folder; `nursery:` and similar names stay, and so do hub names that are not paths there."""
    if not value or is_given_name(value):
        return value
    if redacted(value) != value:  # once it is a path, it would no longer be recognised as a secret
        raise InputError(f"run file: `{key}` {HOLDS_A_SECRET}")
    try:
        path = folder / Path(value).expanduser()
        names_model, names_prompts = (is_exactly(key, marked(model, mark)) for mark in (NamesModel, NamesPrompts))
        may_be_hub_name = (names_model and looks_like_hub_name(value)) or (names_prompts and is_dataset_name(value))
        if may_be_hub_name and not path.exists():
            return value
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"run file: `{key}` = {value!r} is no path: {error}; check it") from None


def looks_like_hub_name(value: str) -> bool:
    """`org/model`, which is not a path that exists here."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value) is not None and not value.startswith(".")


def _out_of_range(raw: Any, place: str = "") -> Iterator[str]:
    """Keys of numbers that JSON and most arithmetic cannot use."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _out_of_range(value, f"{place}.{key}" if place else str(key))
    elif (isinstance(raw, float) and not math.isfinite(raw)) or (isinstance(raw, int) and abs(raw) >= 2**63):
        yield place
