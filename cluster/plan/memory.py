"""Memory of each role of a plan, before anything is loaded, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config.run_file import RunFile
from cluster.plan.hardware import Device
from cluster.plan.rates import Rates
from learners.memory import learner_memory
from solon.engines.base import EngineOptions
from solon.engines.memory import CONTEXT, GIB, PROCESS, engine_memory, request_cache
from solon.errors import InputError
from solon.models.facts import ModelFacts, model_folder, read_facts
from solon.models.sizes import BYTES, ModelSizes, sizes_of

VERSIONS_MAPPED = 2
"""Policy versions that an engine and the learner map from Ray's object store at once: the live one and the next. Seen
in a run of benchmarks/plan.py: 1,076,154,368 bytes of each, with versions of 538,060,032."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBytes:
    """One worker of a role; bytes."""

    role: str
    model: str
    workers: int
    devices: float
    """Of one worker; 0: it runs on the CPU."""
    weights: int
    cache: int
    optimiser: int
    working: int
    runtime: int
    measured: int = 0
    """Peak of the process where the role was measured; 0: it was not."""
    least_cache: int = 0
    """Of one request of full length."""

    @property
    def total(self) -> int:
        """The peak: as measured, else the estimate."""
        return self.measured or self.estimate

    @property
    def estimate(self) -> int:
        """Sum of the parts."""
        return self.weights + self.cache + self.optimiser + self.working + self.runtime

    def as_json(self) -> dict[str, object]:
        """GiB."""
        parts = ("weights", "cache", "optimiser", "working", "runtime")
        return {
            "role": self.role,
            "model": self.model,
            "workers": self.workers,
            "devices": self.devices,
            "gib": {name: round(getattr(self, name) / GIB, 3) for name in parts},
            "peak_gib": round(self.total / GIB, 3),
            "estimate_gib": round(self.estimate / GIB, 3),
            "is_measured": bool(self.measured),
        }


def sizes_for(run: RunFile) -> tuple[dict[str, ModelSizes], dict[str, str]]:
    """Sizes of policy and judge, and how their weights are compressed. config.json is enough.

    Raises InputError for a model that is not on this machine or whose shape is not that of an ordinary decoder."""
    sizes, compressed = {}, {}
    for role, model in (("policy", run.policy), ("judge", run.judge)):
        facts = _facts(role, model)
        found = sizes_of(facts)
        if found is None:
            raise InputError(
                f"{role} {model}: its config.json does not describe an ordinary decoder (experts, another attention), "
                "whose work a plan can compute; measure on the device: solon measure RUN.toml"
            )
        sizes[model], compressed[model] = found, facts.quantisation
    return sizes, compressed


def _facts(role: str, model: str) -> ModelFacts:
    folder = model_folder(model)
    if folder is None:
        raise InputError(
            f"{role} {model} is not on this machine, expected a folder with at least its config.json: a plan needs the "
            "model's shape; fetch that file and name its folder with --set"
        )
    if any(folder.glob("*.safetensors")):
        return read_facts(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{role} {model}: config.json cannot be read: {error}") from None
    return ModelFacts(path=Path(folder), config=config, tokenizer_config={}, generation={})


def roles_of(
    run: RunFile, sizes: dict[str, ModelSizes], *, device: Device | None, measured: Rates | None = None
) -> list[RoleBytes]:
    """Rollout engine, judge and learner. measured: peaks that are taken from there, where the roles are as then."""
    size = device.memory if device is not None else None
    peaks = measured.memory if measured is not None else {}
    roles = []
    for role, model, section, pool in (
        ("rollout", run.policy, run.rollout, run.policy_pool),
        ("judge", run.judge, run.judging, run.judge_pool),
    ):
        options = run.workers[pool].engine_config(seed=run.seed)
        found = _engine(
            role, model, options, section.num_gpus, section.num_actors, sizes[model], size, peaks.get(role, 0)
        )
        if role == "rollout":
            found = replace(found, working=found.working + mapped_bytes(run, sizes[model], on_gpu=section.num_gpus > 0))
        roles.append(found)
    roles.append(_learner(run, sizes[run.policy], peaks.get("learner", 0)))
    return roles


def mapped_bytes(run: RunFile, sizes: ModelSizes, *, on_gpu: bool) -> int:
    """Resident memory of a process on a CPU that is mapped from the object store: whole versions. On a GPU they are in
    the host's memory, which is not the role's; adapters alone are small."""
    if on_gpu or run.publish.way == "adapter":
        return 0
    dtype = run.learn.serving_dtype
    return VERSIONS_MAPPED * sizes.parameters * (4 if dtype == "auto" else BYTES[dtype])


def _engine(
    role: str,
    model: str,
    options: EngineOptions,
    share: float,
    workers: int,
    sizes: ModelSizes,
    device: int | None,
    peak: int,
) -> RoleBytes:
    found = engine_memory(sizes, options, on_gpu=share > 0, reloads=role == "rollout", device=device)
    return RoleBytes(
        role=role,
        model=model,
        workers=workers,
        devices=share,
        weights=found.weights,
        cache=found.cache,
        optimiser=0,
        working=found.activations + found.reload,
        runtime=found.runtime,
        measured=peak,
        least_cache=request_cache(sizes, options, on_gpu=share > 0),
    )


def _learner(run: RunFile, sizes: ModelSizes, peak: int) -> RoleBytes:
    section = run.learn
    found = learner_memory(
        sizes,
        section,
        on_gpu=section.num_gpus > 0,
        longest=run.rollout.max_model_len,
        runtime=CONTEXT if section.num_gpus else PROCESS,
        filtered=bool(run.rollout.sampling().filters),
        ranks=section.num_ranks,
    )
    return RoleBytes(
        role="learner",
        model=run.policy,
        workers=section.num_ranks,
        devices=section.num_gpus,
        weights=found.weights,
        cache=0,
        optimiser=found.moments,
        working=found.total
        - found.weights
        - found.moments
        - found.runtime
        + mapped_bytes(run, sizes, on_gpu=section.num_gpus > 0),
        runtime=found.runtime,
        measured=peak,
    )


def lacking(roles: list[RoleBytes], device: Device, sharing: tuple[str, ...] = ()) -> list[str]:
    """What does not fit on its device, a sentence each. sharing: roles that share one."""
    found = []
    for role in roles:
        if role.role in sharing:
            continue
        missing = role.estimate - device.memory
        if role.cache and role.cache < role.least_cache:
            # The cache is what the engine's part of the device leaves.
            missing = max(missing, role.least_cache - role.cache)
        if missing > 0:
            found.append(
                f"the {role.role} ({Path(role.model).name}) does not fit on one {device.name}: it lacks "
                f"{missing / GIB:.1f} of {device.memory_gib:.1f} GiB (weights {role.weights / GIB:.1f}, optimiser "
                f"{role.optimiser / GIB:.1f}, working {role.working / GIB:.1f}, runtime {role.runtime / GIB:.1f})"
            )
    together = [role for role in roles if role.role in sharing]
    total = sum(role.estimate for role in together)
    if total > device.memory:
        parts = ", ".join(f"{role.role} {role.estimate / GIB:.1f}" for role in together)
        found.append(
            f"{parts} GiB do not fit together on one {device.name}: {(total - device.memory) / GIB:.1f} of "
            f"{device.memory_gib:.1f} GiB are missing"
        )
    return found
