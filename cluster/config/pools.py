"""A pool: workers of one role that hold one model, are built alike and are placed alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from cluster.config.labels import Labels
from cluster.config.sections import (
    MOST_RANKS,
    MOST_WORKERS,
    EngineSection,
    LearnSection,
    Quantity,
    Section,
    Share,
    refuse_shared_ranks,
    unequal_ranks,
)
from solon.engines.base import EngineConfig, EngineOptions
from solon.files.marks import MayChange, ModelName

WITH_RANKS = ("learner", "rollout", "judge", "audit")
"""Roles whose workers may be several processes."""


class Placement(Section):
    """What one worker of a pool requests from the cluster, and on which nodes it may run."""

    num_cpus: Quantity = 1.0
    """Ray CPUs per worker."""
    num_gpus: Share = 0.0
    """Ray GPUs per worker: 0, it runs on the CPU and sees no GPU; below 1, several share a device."""
    labels: Labels = Field(default_factory=dict)
    """Label selector: these workers run only on nodes with these labels. Empty: on any node."""


class PoolSpec(Section):
    """`PoolSpec(role="judge", model="org/judge", size=2)`"""

    role: str = Field(min_length=1)
    """What its workers do: `rollout`, `judge`, `audit`, or another role in `cluster/pools/`."""
    model: ModelName = ""
    """The model that every worker holds: a directory, a hub name, or the file of an endpoint."""
    size: Annotated[int, MayChange()] = Field(1, ge=0, le=MOST_WORKERS, strict=True)
    """Number of workers, each its own Ray actor; 0: none is started."""
    max_size: Annotated[int, MayChange()] = Field(0, ge=0, le=MOST_WORKERS, strict=True)
    """Most workers during training: their number follows the load between `size` and this. 0: it stays at `size`. Only
    for the pools that generate and label."""
    engine: EngineOptions = EngineOptions()
    """How the engine of each worker is built."""
    placement: Annotated[Placement, MayChange()] = Placement()
    """Where the workers run."""
    num_ranks: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_RANKS, strict=True)
    """Processes of one worker that compute together, each placed alike: the ranks of an engine, on one node
    (`tensor_parallel` in a run file), or of the learner."""
    num_nodes: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_RANKS, strict=True)
    """Nodes over which the ranks of the learner are divided, as many on each."""
    _name: str = PrivateAttr("")
    _section: str = PrivateAttr("")
    _is_numbered: bool = PrivateAttr(True)

    @model_validator(mode="after")
    def _only_some_roles_have_ranks(self) -> Self:
        if self.num_ranks > 1 and self.role not in WITH_RANKS:
            raise ValueError(f"num_ranks = {self.num_ranks} in a pool of role {self.role!r}, expected 1; set size")
        if self.role != "learner" and self.num_nodes > 1:
            raise ValueError(
                f"num_nodes = {self.num_nodes} in a pool of role {self.role!r}, expected 1: the ranks of an engine "
                "share a node; remove it"
            )
        if self.num_ranks % self.num_nodes:
            raise ValueError(unequal_ranks(self.num_ranks, self.num_nodes))
        if self.role != "learner":
            refuse_shared_ranks("num_ranks", self.num_ranks, self.placement.num_gpus, self.engine.backend)
        return self

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if not self.max_size:
            return self
        if self.role not in ("rollout", "judge"):
            raise ValueError(
                f"max_size = {self.max_size} in a pool of role {self.role!r}, expected none: only pools of role "
                "'rollout' and 'judge' change their size; remove it"
            )
        if self.max_size < self.size:
            raise ValueError(
                f"max_size = {self.max_size} is below size = {self.size}, expected 0 (a fixed size) or at least size; "
                "raise max_size"
            )
        return self

    @property
    def name(self) -> str:
        """The name by which stages and workers refer to it."""
        return self._name

    @property
    def section(self) -> str:
        """The section of the file that sets it, for messages: `judging`, or `pools.judge`."""
        return self._section

    @property
    def worker_names(self) -> list[str]:
        """`judge-0`, `judge-1`; in some pools the only worker has the name of the pool."""
        if not self._is_numbered and self.size == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(self.size)]

    def called(self, name: str, section: str, *, is_numbered: bool = True) -> Self:
        """The same pool under a name, set in this section of a file."""
        copy = self.model_copy()
        copy._name, copy._section, copy._is_numbered = name, section, is_numbered
        return copy

    def key(self, name: str) -> str:
        """The key that sets this: `judging.num_cpus`, or `pools.judge.placement.num_cpus`."""
        if not self.section.startswith("pools."):
            return f"{self.section}.{name}"
        return f"{self.section}.{_part_of(name)}{name}"

    def engine_config(self, *, seed: int) -> EngineConfig:
        """The configuration of the engine, with a default length fitted to the model's context."""
        return as_section(self).engine(self.model, seed=seed)


def pool_of(role: str, model: str, settings: EngineSection, *, name: str, section: str) -> PoolSpec:
    """The pool that a section of a run file describes. Values that were set there stay distinct from defaults."""
    given = {key: getattr(settings, key) for key in Placement.model_fields if key in settings.model_fields_set}
    sizes = {"size": settings.num_actors, "max_size": settings.max_actors, "num_ranks": settings.tensor_parallel}
    pool = PoolSpec(role=role, model=model, **sizes, engine=settings, placement=Placement(**given))
    return pool.called(name, section)


def learner_pool(model: str, section: LearnSection) -> PoolSpec:
    """The process that trains."""
    given = {key: getattr(section, key) for key in Placement.model_fields if key in section.model_fields_set}
    pool = PoolSpec(role="learner", model=model, placement=Placement(**given), num_ranks=section.num_ranks,
                    num_nodes=section.num_nodes)  # fmt: skip
    return pool.called("learner", "learn", is_numbered=False)


def as_section(pool: PoolSpec) -> EngineSection:
    """Engine and placement together, as in a section of a run file."""
    engine = {
        key: getattr(pool.engine, key) for key in EngineOptions.model_fields if key in pool.engine.model_fields_set
    }
    placement = {key: getattr(pool.placement, key) for key in pool.placement.model_fields_set}
    sizes = {"num_actors": max(1, pool.size), "max_actors": pool.max_size, "tensor_parallel": pool.num_ranks}
    return EngineSection(**engine, **placement, **sizes)


def changes(section: EngineSection | LearnSection, pool: PoolSpec) -> Mapping[str, Any]:
    """The changes to a section that make it describe this pool."""
    found = {key: getattr(pool.placement, key) for key in Placement.model_fields}
    if isinstance(section, LearnSection):
        found |= {"num_ranks": pool.num_ranks, "num_nodes": pool.num_nodes}
    if isinstance(section, EngineSection):
        found |= {key: getattr(pool.engine, key) for key in EngineOptions.model_fields}
        found["tensor_parallel"] = pool.num_ranks
    return {key: value for key, value in found.items() if getattr(section, key) != value}


def _part_of(name: str) -> str:
    if name in Placement.model_fields:
        return "placement."
    return "engine." if name in EngineOptions.model_fields else ""
