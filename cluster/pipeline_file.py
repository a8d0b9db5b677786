"""The pipeline file: pools, each named once, and the stages that use them in order.

    [pools.policy]
    role = "rollout"
    model = "org/model"

    [[stages]]
    type = "rlaif"
    prompts = "prompts.jsonl"

A run file of four keys is shorthand for one (see `stages_of`). docs/pipelines.md describes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from cluster.config.pools import Placement, PoolSpec, as_section, learner_pool
from cluster.config.run_file import RECORDED, RunFile
from cluster.config.sections import EngineSection, RolloutSection
from cluster.stages import known_stages
from cluster.stages.audit import AuditStage
from cluster.stages.base import Stage
from cluster.stages.evaluate import EvaluateStage
from cluster.stages.order import check_stages
from cluster.stages.rlaif import RlaifStage
from solon.errors import InputError, nearest
from solon.files.overrides import parse_override, put
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid

OF_POOLS = ("policy", "judge", "judging")
"""Keys of a run file that pools replace in a pipeline file."""
SECTIONS_OF_POOLS = {
    "rollout": tuple(EngineSection.model_fields),
    "evaluate": ("audit_judge",),
    "watch": ("audit_judge",),
}
"""The same within sections that are otherwise allowed."""


def _parsed(value: Any) -> Any:
    return tuple(stage if isinstance(stage, Stage) else parse_stage(stage, "stages") for stage in value)


class Pipeline(RunFile):
    """A whole run of pools and stages; every key of a run file has the same meaning here."""

    pools: dict[str, PoolSpec] = Field(default_factory=dict)
    """The workers, by the name that stages use."""
    stages: Annotated[tuple[SerializeAsAny[Stage], ...], BeforeValidator(_parsed)] = ()
    """The stages, in order."""

    @model_validator(mode="after")
    def _evaluations_have_an_evaluator(self) -> Self:
        evaluator = self.evaluate.evaluator
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, EvaluateStage):
                continue
            if not evaluator:
                raise ValueError(
                    f"stages[{number}] (evaluate) has no evaluator, expected 'judge', 'nursery' or 'english'; "
                    "set it and prompts"
                )
            if (evaluator == "judge") != bool(stage.judge):
                change = "remove judge" if stage.judge else "set judge to a pool of role audit"
                raise ValueError(
                    f"stages[{number}] (evaluate) has evaluator = {evaluator!r} and judge = {stage.judge!r}; {change}"
                )
        return self

    @property
    def training(self) -> RlaifStage:
        """The stage that trains."""
        return next(stage for stage in self.stages if isinstance(stage, RlaifStage))

    @property
    def policy_pool(self) -> str:
        return self.training.policy

    @property
    def judge_pool(self) -> str:
        return self.training.judge

    @property
    def workers(self) -> Mapping[str, PoolSpec]:
        pools = {name: pool.called(name, f"pools.{name}") for name, pool in self.pools.items() if pool.size}
        if self.rollout.base_model and (policy := pools.get(self.policy_pool)) is not None:
            pools[self.policy_pool] = policy.model_copy(update={"model": self.rollout.base_model})
        return {**pools, "learner": learner_pool(self.policy, self.learn)}

    def with_pools(self, pools: Mapping[str, PoolSpec]) -> Self:
        own = {name: pool for name, pool in pools.items() if name in self.pools}
        learner = {name: pool for name, pool in pools.items() if name == "learner"}
        run = super().with_pools(learner)
        return run.model_copy(update={"pools": {**run.pools, **own}})

    def with_rollout(self, rollout: RolloutSection) -> Self:
        name = self.training.policy
        engine = self.pools[name].engine.model_copy(update={"max_model_len": rollout.max_model_len})
        pool = self.pools[name].model_copy(update={"engine": engine})
        return self.model_copy(update={"rollout": rollout, "pools": {**self.pools, name: pool}})

    @property
    def auditors(self) -> Mapping[str, PoolSpec]:
        return {pool.section: pool for pool in self.workers.values() if pool.role == "audit"}

    def require_one_auditor(self) -> None:
        """Each stage names its own."""

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check, including the order of the stages. Raises InputError."""
        path = Path(path)
        raw = _read(path)
        is_record = raw.keys() >= RECORDED
        if is_record:
            raw = {key: value for key, value in raw.items() if key in cls.model_fields}
        _check_pools(raw, path)
        stages = [
            parse_stage(stage, f"pipeline file {path}: stages", raw, number) for number, stage in _listed(raw, path)
        ]
        stages = _named(stages)
        raw["stages"] = stages
        if not is_record:  # which holds every key, with the values of its pools
            _refuse_keys_of_pools(raw, stages, f"pipeline file {path}")
        cls.resolve(raw, path.parent)
        for override in overrides:
            key, value, _ = parse_override(override)
            _refuse_override(key, raw["pools"])
            given: dict[str, Any] = {}
            put(given, key, value, override)
            _refuse_keys_of_pools(given, stages, f"--set {key}")
            cls.override(raw, override)
        pools = _pools(raw, path)
        check_stages(stages, pools, source=f"pipeline file {path}")
        _derive(raw, stages, pools)
        return cls.parse(raw, source=str(path))


def load_run(path: str | Path, *, overrides: Sequence[str] = ()) -> RunFile:
    """A run file or a pipeline file, distinguished by content. Raises InputError."""
    raw = _read(Path(path))
    if "methods" in raw:
        raise InputError(
            f"{path} lists methods, expected a run file or a pipeline file; compare them: solon compare {path}"
        )
    kind = Pipeline if {"stages", "pools"} & raw.keys() else RunFile
    return kind.load(path, overrides=overrides)


def stages_of(run: RunFile) -> tuple[Stage, ...]:
    """The stages of a run, in order. Four keys stand for evaluation, training, and evaluation again, with the audit
    attached where one is configured."""
    if isinstance(run, Pipeline):
        return run.stages
    found: list[Stage] = [RlaifStage(policy=run.policy_pool, judge=run.judge_pool)]
    if run.watch.audit_judge:
        found.insert(0, AuditStage(judge="audit-judge"))
    if run.evaluate.evaluator:
        judge = "audit-judge" if run.evaluate.evaluator == "judge" else ""
        before, after = (EvaluateStage(name=name, policy=run.policy_pool, judge=judge) for name in ("before", "after"))
        found = [before, *found, after]
    return tuple(found)


def parse_stage(raw: Any, where: str, run: dict[str, Any] | None = None, number: int = 0) -> Stage:
    """One stage of a file; settings of the run that it contains are moved to their place in `run`.

    Raises InputError.
    """
    known = known_stages()
    place = f"{where}[{number}]" if run is not None else where
    if not isinstance(raw, Mapping) or not isinstance(raw.get("type"), str):
        raise InputError(f"{place} has no type, expected one of {', '.join(sorted(known))}; add type")
    if raw["type"] not in known:
        raise InputError(
            f"{place} has the type {raw['type']!r}, expected one of {', '.join(sorted(known))}"
            f"{nearest(raw['type'], known)}"
        )
    kind, own = known[raw["type"]], dict(raw)
    for key, target in kind.moved.items():
        if run is not None and key in own:
            _move(run, target, own.pop(key), place)
    if strange := [key for key in own if key not in kind.model_fields and key not in kind.moved]:
        keys = [*kind.model_fields, *kind.moved]
        raise InputError(f"{place} has the unknown key `{strange[0]}`{nearest(strange[0], keys)}; rename or remove it")
    try:
        return kind.model_validate(own)
    except ValidationError as error:
        raise InputError(f"{place}: {describe_invalid(kind, error)}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, what="run file")
    except InputError as error:
        if "Cannot declare ('pools', '" not in str(error):
            raise
        name = str(error).partition("Cannot declare ('pools', '")[2].partition("'")[0]
        raise InputError(
            f"pipeline file {path} has two pools of the name {name!r}, expected one; call the other `{name}-2`, say"
        ) from None


def _move(run: dict[str, Any], target: str, value: Any, place: str) -> None:
    """Put a setting of a stage at its key of the run. Two stages may set the same value."""
    section, _, key = target.partition(".")
    held = run.get(section)
    if key:
        held = held.get(key) if isinstance(held, dict) else None
    put(run, target, value if held is None else _merged(held, value, target, place), f"{target}={value}")


def _merged(held: Any, value: Any, key: str, place: str) -> Any:
    """Both settings as one. Raises InputError where the two have different values of a key."""
    if isinstance(held, dict) and isinstance(value, dict):
        both = {name: _merged(held[name], value[name], f"{key}.{name}", place) for name in value if name in held}
        return {**held, **value, **both}
    if held != value:
        raise InputError(
            f"{place}: `{key}` is {value!r} here and {held!r} elsewhere in the file, expected one value; remove one"
        )
    return value


def _refuse_keys_of_pools(given: Mapping[str, Any], stages: Sequence[Stage], source: str) -> None:
    """A key that a pool sets would have no effect elsewhere. Raises InputError with the key of the pool."""
    training = next((stage for stage in stages if isinstance(stage, RlaifStage)), RlaifStage())
    pools = {"policy": training.policy, "judge": training.judge, "judging": training.judge, "rollout": training.policy}
    for key in OF_POOLS:
        if key in given:
            settings = given[key] if isinstance(given[key], Mapping) else {}
            inner = [name for name in EngineSection.model_fields if name in settings]
            other = _key_of_pool(pools[key], inner[0] if inner else "engine" if key == "judging" else "model")
            raise InputError(
                f"{source}: `{key}` is a key of a run file, expected [pools.NAME] with role, model and engine; "
                f"set {other} instead"
            )
    for section, kind in (("evaluate", EvaluateStage), ("watch", AuditStage)):
        if section in given and not any(isinstance(stage, kind) for stage in stages):
            raise InputError(
                f"{source}: `{section}` has no effect without a stage of type {kind.kind}, and there is none; add one, "
                "or remove it"
            )
    for section, keys in SECTIONS_OF_POOLS.items():
        settings = given.get(section)
        for key in [key for key in keys if isinstance(settings, Mapping) and key in settings]:
            names = [s.judge for s in stages if isinstance(s, EvaluateStage if section == "evaluate" else AuditStage)]
            pool = pools[section] if section in pools else next(filter(None, names), "NAME")
            raise InputError(
                f"{source}: `{section}.{key}` has no effect in a pipeline file, expected the key of a pool; set "
                f"{_key_of_pool(pool, 'model' if key == 'audit_judge' else key)} instead"
            )


def _key_of_pool(pool: str, key: str) -> str:
    sizes = {"num_actors": "size", "max_actors": "max_size", "tensor_parallel": "num_ranks"}
    return f"pools.{pool}.{sizes[key]}" if key in sizes else PoolSpec(role="any").called(pool, f"pools.{pool}").key(key)


def _listed(raw: Mapping[str, Any], path: Path) -> list[tuple[int, Any]]:
    stages = raw.get("stages")
    if not isinstance(stages, list) or not stages:
        raise InputError(
            f"pipeline file {path} has {_got(stages)} stages, expected [[stages]] with a type; add one of type rlaif"
        )
    return list(enumerate(stages, start=1))


def _check_pools(raw: Mapping[str, Any], path: Path) -> None:
    pools = raw.get("pools")
    if not isinstance(pools, dict) or not pools:
        raise InputError(
            f"pipeline file {path} has {_got(pools)} pools, expected [pools.NAME] with role and model; add one. "
            f"For stages that make files: solon align {path}"
        )
    for name in pools:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise InputError(
                f"pipeline file {path}: a pool is named {name!r}, expected at most 64 letters, digits, - and _; "
                "rename it"
            )


def _got(value: Any) -> str:
    """What stands in the place of a table or list, for messages."""
    return "no" if value is None or value in ([], {}) else f"{json.dumps(value, default=str)[:40]} as its"


def _refuse_override(key: str, pools: Mapping[str, Any]) -> None:
    """Stages and the set of pools come from the file alone. Raises InputError."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if section == "stages":
        raise InputError(
            f"--set {key}: stages are set in the file, expected a key of the run, such as learn.epochs; change the file"
        )
    if section == "pools" and ("." not in rest or name not in pools):
        raise InputError(
            f"--set {key}{nearest(name, list(pools))}, expected a key of one of the pools {', '.join(pools)}; "
            f"set pools.{next(iter(pools))}.size, for example"
        )


def _pools(raw: Mapping[str, Any], path: Path) -> dict[str, PoolSpec]:
    found, workers = {}, {"learner": "the learner"}
    for name, pool in raw["pools"].items():
        try:
            found[name] = PoolSpec.model_validate(pool)
        except ValidationError as error:
            raise InputError(f"pipeline file {path}: pools.{name}: {describe_invalid(PoolSpec, error)}") from None
        for worker in found[name].called(name, "").worker_names or [name]:
            if (owner := workers.get(worker) or workers.get(name)) is not None:
                raise InputError(
                    f"pipeline file {path}: pools.{name} has a worker of the name of {owner}, "
                    f"expected names of its own; call it `{name}-pool`, say"
                )
            workers[worker] = f"pools.{name}"
    return found


def _named(stages: Sequence[Stage]) -> list[Stage]:
    """Evaluations without a name are `before` the training or `after` it."""
    found: list[Stage] = []
    for stage in stages:
        if isinstance(stage, EvaluateStage) and not stage.name:
            trained = any("trained policy" in earlier.makes for earlier in found)
            stage = stage.model_copy(update={"name": "after" if trained else "before"})
        found.append(stage)
    return found


def _derive(raw: dict[str, Any], stages: Sequence[Stage], pools: Mapping[str, PoolSpec]) -> None:
    """The sections of a run file for the engines, taken from the pools."""
    training = next(stage for stage in stages if isinstance(stage, RlaifStage))
    for section, key, name in (("rollout", "policy", training.policy), ("judging", "judge", training.judge)):
        pool = pools[name]
        raw[key] = pool.model
        engine = {key: getattr(pool.engine, key) for key in pool.engine.model_fields_set}
        placement = {key: getattr(pool.placement, key) for key in Placement.model_fields}
        sizes = {key: getattr(as_section(pool), key) for key in ("num_actors", "max_actors")}
        raw[section] = {**(raw.get(section) or {}), **engine, **placement, **sizes}
    for stage in stages:
        if isinstance(stage, EvaluateStage) and stage.judge:
            put(raw, "evaluate.audit_judge", pools[stage.judge].model, "evaluate")
        if isinstance(stage, AuditStage):
            put(raw, "watch.audit_judge", pools[stage.judge].model, "watch")
