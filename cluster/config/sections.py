"""Sections of a run file that place work on a cluster or audit it: engines, learner, evaluation, audit."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cluster.config.labels import Labels
from learners.config import LearnConfig
from solon.engines.base import EngineConfig, EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.sampling import SamplingOptions
from solon.feedback.watching.watch_config import CanaryConfig, WatchConfig
from solon.files.marks import FilePath, MayChange, ModelName, PromptsPath

MOST_RANKS = 64
"""Of one worker."""
MOST_WORKERS = 10_000
"""Of one pool."""


def _as_ray_counts(quantity: float) -> float:
    if not math.isfinite(quantity):
        raise ValueError(f"got {quantity:g}, expected a finite number")
    if quantity > 1 and quantity != int(quantity):
        raise ValueError(f"got {quantity:g}, expected a whole number above 1: Ray counts no fraction above 1")
    if 0 < quantity < 1e-4:
        raise ValueError(f"got {quantity:g}, expected 0 or at least 0.0001: Ray counts no finer")
    return quantity


def _one_device(quantity: float) -> float:
    if quantity > 1:
        raise ValueError(
            f"got {quantity:g}, expected at most 1: each rank of an engine and of a learner has one GPU, all but one "
            "would be idle; set 1, and tensor_parallel for an engine of several GPUs, num_actors for more engines, or "
            "learn.num_ranks"
        )
    return _as_ray_counts(quantity)


Quantity = Annotated[float, Field(ge=0), AfterValidator(_as_ray_counts)]
"""Ray CPUs per actor: a fraction of one, or a whole number."""
Share = Annotated[float, Field(ge=0), AfterValidator(_one_device)]
"""Ray GPUs per actor: none, a fraction of one, or one."""


def unequal_ranks(ranks: int, nodes: int) -> str:
    """Why these ranks cannot be divided over the nodes, and the remedy."""
    return (
        f"num_nodes = {nodes} with num_ranks = {ranks}, expected as many ranks on each node; set num_ranks to a "
        f"multiple of {nodes}, such as {max(1, round(ranks / nodes)) * nodes}, or num_nodes = 1"
    )


def refuse_shared_ranks(key: str, ranks: int, gpus: float, backend: str) -> None:
    """Raises ValueError for an engine of several ranks that cannot be one. key: sets the number of ranks."""
    if ranks == 1:
        return
    if backend != "vllm":
        raise ValueError(
            f"{key} = {ranks} with backend = {backend!r}, expected 'vllm', which alone divides a model; set it, or "
            f"{key} = 1"
        )
    if 0 < gpus < 1:
        raise ValueError(
            f"{key} = {ranks} with num_gpus = {gpus:g}, expected one GPU for each rank: ranks that share a device save "
            f"no memory; set num_gpus = 1, or {key} = 1"
        )


class Section(BaseModel):
    """A section of the run file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSection(EngineOptions):
    """An engine's options and the resources of the actors that host it."""

    num_actors: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_WORKERS)
    """Number of these engines, each its own Ray actor."""
    max_actors: Annotated[int, MayChange()] = Field(0, ge=0, le=MOST_WORKERS)
    """Most of these engines during training: their number follows the load between `num_actors` and this. 0: it stays
    at `num_actors`."""
    num_cpus: Annotated[Quantity, MayChange()] = 1.0
    """Ray CPUs per actor."""
    num_gpus: Annotated[Share, MayChange()] = 0.0
    """Ray GPUs per actor: 0, the engine runs on the CPU and sees no GPU; below 1, several actors share a device and its
    memory."""
    labels: Annotated[Labels, MayChange()] = Field(default_factory=dict)
    """Label selector: these actors run only on nodes with these labels. Empty: on any node."""
    tensor_parallel: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_RANKS, strict=True)
    """Processes that compute one engine together on one node, each with a part of every large tensor; `num_cpus`,
    `num_gpus`, `threads` and `kv_cache_gib` are those of one of them."""

    @model_validator(mode="after")
    def _ranks_compute_alone(self) -> Self:
        refuse_shared_ranks("tensor_parallel", self.tensor_parallel, self.num_gpus, self.backend)
        return self

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if 0 < self.max_actors < self.num_actors:
            raise ValueError(
                f"max_actors = {self.max_actors} is below num_actors = {self.num_actors}, expected 0 (a fixed number) "
                "or at least num_actors; raise max_actors"
            )
        return self

    def engine(self, model: str, *, seed: int) -> EngineConfig:
        """The configuration of the engine, with a default length fitted to the model's context."""
        config = engine_config(model, self, seed=seed)
        placed = {
            "device": "gpu" if self.num_gpus else "cpu",
            "shares_device": 0 < self.num_gpus < 1,
            "tensor_parallel": self.tensor_parallel,
        }
        return config.model_copy(update=placed)


class RolloutSection(EngineSection, SamplingOptions):
    """Generation: the engine, and how answers are drawn."""

    group_size: int = Field(8, ge=1)
    """Answers per prompt."""
    base_model: ModelName = ""
    """The weights below the adapters in these engines: a quantised copy of the policy, with `publish.way = "adapter"`.
    Empty: the policy's own."""

    @property
    def computes_in_float32(self) -> bool:
        """Whether these engines certainly compute in float32."""
        return self.dtype == "float32" or (self.dtype == "auto" and not self.num_gpus)

    def engine(self, model: str, *, seed: int) -> EngineConfig:
        """As for any engine; this one also receives new weights."""
        return super().engine(model, seed=seed).model_copy(update={"reloads": True})


class LearnSection(LearnConfig):
    """Learning, and the resources of the learner's actor."""

    num_cpus: Annotated[Quantity, MayChange()] = 1.0
    """Ray CPUs of the learner."""
    num_gpus: Annotated[Share, MayChange()] = 0.0
    """Ray GPUs of the learner: 0, it runs on the CPU and sees no GPU; below 1, it shares a device."""
    labels: Annotated[Labels, MayChange()] = Field(default_factory=dict)
    """Label selector: the learner runs only on a node with these labels. Empty: on any node."""
    num_ranks: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_RANKS, strict=True)
    """Processes that train together, each with a part of every network; `num_cpus` and `num_gpus` are those of one of
    them."""
    num_nodes: Annotated[int, MayChange()] = Field(1, ge=1, le=MOST_RANKS, strict=True)
    """Nodes over which the ranks are divided, as many on each: `num_ranks` is a multiple of it. More than one needs a
    cluster with such nodes, and a folder of runs that all of them see."""
    rank_timeout_s: Annotated[float, MayChange()] = Field(900.0, ge=1, le=10**6)
    """How long a rank waits for the others in one operation before all are replaced, seconds."""

    @model_validator(mode="after")
    def _device_is_asked_for(self) -> Self:
        wants_gpu = self.device.startswith("cuda")
        if wants_gpu and not self.num_gpus:
            raise ValueError(
                f"device = {self.device!r} with num_gpus = 0, which hides every GPU from the learner; set num_gpus"
            )
        if wants_gpu and self.device not in ("cuda", "cuda:0"):
            raise ValueError(
                f"device = {self.device!r}, expected 'auto': the learner sees one GPU, the one it was given"
            )
        if self.num_ranks > 1 and 0 < self.num_gpus < 1:
            raise ValueError(
                f"num_ranks = {self.num_ranks} with num_gpus = {self.num_gpus:g}, expected one GPU for each rank: "
                "ranks that share a device save no memory; set num_gpus = 1, or num_ranks = 1"
            )
        if self.num_ranks % self.num_nodes:
            raise ValueError(unequal_ranks(self.num_ranks, self.num_nodes))
        if self.offloaded and not self.num_gpus:
            raise ValueError(
                f"{' and '.join(self.offloaded)} with num_gpus = 0: the learner computes on the CPU, whose memory is "
                "the host's already; remove it, or set num_gpus"
            )
        if self.device == "cpu" and self.num_gpus:
            raise ValueError(f"device = 'cpu' with num_gpus = {self.num_gpus:g}, which would be idle; set num_gpus = 0")
        return self

    @property
    def placed(self) -> Self:
        """The same section with the assigned device in place of `auto`, so that a missing GPU is an error and not a
        slow learner."""
        return self.model_copy(update={"device": "cuda" if self.num_gpus else "cpu"})


class EvaluateSection(Section):
    """Held-out evaluation before the first and after the last step, by an evaluator that never rewards."""

    prompts: PromptsPath = ""
    """Held-out prompts; empty: no evaluation."""
    evaluator: Literal["", "nursery", "english", "judge"] = ""
    """`nursery`, `english`: the programs of the tiny language and of the English demo. `judge`: the feedback questions,
    put to another judge, `audit_judge`."""
    audit_judge: ModelName = ""
    max_prompts: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.prompts) != bool(self.evaluator):
            raise ValueError("evaluate needs both prompts and evaluator, or neither")
        if (self.evaluator == "judge") != bool(self.audit_judge):
            raise ValueError("evaluate.audit_judge goes with evaluate.evaluator = 'judge'; set both or neither")
        return self


class WatchSection(WatchConfig):
    """The gold audit: another judge reads a share of the rollouts. Its verdicts never become rewards."""

    audit_judge: ModelName = ""
    """A model other than the judge, preferably larger and of another family; empty: no audit."""
    kl_factor: float = Field(2.0, gt=1, le=100)
    """`action = "raise_kl"`: the factor for learn.kl_coefficient, applied once per kind of alarm."""
    canary: FilePath = ""
    """Pairs with a known verdict, put to the judge repeatedly without its caches; empty: none."""
    canaries: CanaryConfig = CanaryConfig()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.audit_judge and self != WatchSection.model_construct():
            raise ValueError("[watch] has no audit_judge, expected the model that audits; name one or drop the section")
        return self
