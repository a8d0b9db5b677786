"""A pool: workers of one role that hold one model, are built alike and are placed alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr

from cluster.config.labels import Labels
from cluster.config.sections import EngineSection, LearnSection, Quantity, Section, Share
from solon.engines.base import EngineConfig, EngineOptions
from solon.files.marks import MayChange, ModelName


class Placement(Section):
    """What one worker of a pool asks of the cluster, and on which nodes it may run."""

    num_cpus: Quantity = 1.0
    """Ray CPUs of one worker."""
    num_gpus: Share = 0.0
    """Ray GPUs of one worker: 0, it runs on the CPU and sees no GPU; below 1, several share a device."""
    labels: Labels = Field(default_factory=dict)
    """Label selector: these workers run on nodes with these labels alone. Empty: on any node."""


class PoolSpec(Section):
    """`PoolSpec(role="judge", model="org/judge", size=2)`"""

    role: str = Field(min_length=1)
    """What its workers do: `rollout`, `judge`, `audit`, or another role of `cluster/pools/`."""
    model: ModelName = ""
    """The model that each of them holds: a directory, a hub name, or the file of an endpoint."""
    size: Annotated[int, MayChange()] = Field(1, ge=0)
    """Workers of the pool, each its own Ray actor; 0: none is started."""
    engine: EngineOptions = EngineOptions()
    """How the engine of each worker is built."""
    placement: Annotated[Placement, MayChange()] = Placement()
    """Where they run."""
    _name: str = PrivateAttr("")
    _section: str = PrivateAttr("")
    _is_numbered: bool = PrivateAttr(True)

    @property
    def name(self) -> str:
        """By which stages and workers know it."""
        return self._name

    @property
    def section(self) -> str:
        """Of the file that sets it, for messages: `judging`, or `pools.judge`."""
        return self._section

    @property
    def worker_names(self) -> list[str]:
        """`judge-0`, `judge-1`; the only worker of some pools is called like the pool."""
        if not self._is_numbered and self.size == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(self.size)]

    def called(self, name: str, section: str, *, is_numbered: bool = True) -> Self:
        """The same pool under a name, set in this section of a file."""
        copy = self.model_copy()
        copy._name, copy._section, copy._is_numbered = name, section, is_numbered
        return copy

    def key(self, name: str) -> str:
        """Where a person sets this: `judging.num_cpus`, or `pools.judge.placement.num_cpus`."""
        if not self.section.startswith("pools."):
            return f"{self.section}.{name}"
        return f"{self.section}.{_part_of(name)}{name}"

    def engine_config(self, *, seed: int) -> EngineConfig:
        """The configuration of the engine itself, a default length fitted to the model's context."""
        return as_section(self).engine(self.model, seed=seed)


def pool_of(role: str, model: str, settings: EngineSection, *, name: str, section: str) -> PoolSpec:
    """The pool that a section of a run file describes. What was set there stays told apart from defaults."""
    given = {key: getattr(settings, key) for key in Placement.model_fields if key in settings.model_fields_set}
    pool = PoolSpec(role=role, model=model, size=settings.num_actors, engine=settings, placement=Placement(**given))
    return pool.called(name, section)


def learner_pool(model: str, section: LearnSection) -> PoolSpec:
    """The process that trains."""
    given = {key: getattr(section, key) for key in Placement.model_fields if key in section.model_fields_set}
    pool = PoolSpec(role="learner", model=model, placement=Placement(**given))
    return pool.called("learner", "learn", is_numbered=False)


def as_section(pool: PoolSpec) -> EngineSection:
    """Engine and placement in one, as a section of a run file has them."""
    engine = {
        key: getattr(pool.engine, key) for key in EngineOptions.model_fields if key in pool.engine.model_fields_set
    }
    placement = {key: getattr(pool.placement, key) for key in pool.placement.model_fields_set}
    return EngineSection(**engine, **placement, num_actors=max(1, pool.size))


def changes(section: EngineSection | LearnSection, pool: PoolSpec) -> Mapping[str, Any]:
    """What a section has to be changed to, so that it describes this pool."""
    found = {key: getattr(pool.placement, key) for key in Placement.model_fields}
    if isinstance(section, EngineSection):
        found |= {key: getattr(pool.engine, key) for key in EngineOptions.model_fields}
    return {key: value for key, value in found.items() if getattr(section, key) != value}


def _part_of(name: str) -> str:
    if name in Placement.model_fields:
        return "placement."
    return "engine." if name in EngineOptions.model_fields else ""
