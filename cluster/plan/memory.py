"""Memory of each role of a plan, before anything is loaded, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile, looks_like_hub_name
from cluster.plan.hardware import Device
from cluster.plan.rates import Rates
from learners.memory import learner_memory
from solon.engines.memory import CONTEXT, GIB, PROCESS, engine_memory, request_cache
from solon.errors import InputError
from solon.models.facts import ModelFacts, model_folder, read_facts
from solon.models.sizes import BYTES, ModelSizes, sizes_of

VERSIONS_MAPPED = 2
"""Policy versions that an engine and the learner map from Ray's object store at once: the live one and the next. Seen
in a run of benchmarks/plan.py: 1,076,154,368 bytes of each, with versions of 538,060,032."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBytes:
    """One worker of a role, on one device; bytes."""

    role: str
    model: str
    workers: int
    devices: float
    """Of one worker; 0: it runs on the CPU."""
    ranks: int = 1
    """Of one engine; bytes are those of one of them."""
    weights: int
    cache: int
    optimiser: int
    working: int
    runtime: int
    measured: int = 0
    """Peak of the process where the role was measured; 0: it was not."""
    least_cache: int = 0
    """Of one request of full length."""
    cache_is_left: bool = False
    """Whether the cache is what the rest leaves of the engine's part of a device."""
    reload: int = 0
    """Of `working`: what new weights need beside those in use."""
    takes_adapters: bool = False

    @property
    def beside(self) -> str:
        """What `reload` is, for people; empty: there is none."""
        what = "room for adapters" if self.takes_adapters else "a second copy of the weights during a reload"
        return f"{self.reload / GIB:.1f} of it {what}" if self.reload else ""

    @property
    def needs(self) -> int:
        """Bytes with which it can work: an engine's cache holds at least one request."""
        return self.estimate - self.cache + max(self.cache, self.least_cache)

    def fits(self, device: Device) -> bool:
        """Whether its part of a device is enough, the cache included."""
        return self.needs <= self.has(device) and self.cache >= self.least_cache

    def has(self, device: Device) -> int:
        """Bytes of its part of a device. An engine without a size of its cache fills its part."""
        return self.estimate if self.cache_is_left else device.memory

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
            "ranks": self.ranks,
            "gib": {name: round(getattr(self, name) / GIB, 3) for name in parts},
            "peak_gib": round(self.total / GIB, 3),
            "estimate_gib": round(self.estimate / GIB, 3),
            "is_measured": bool(self.measured),
        }


def sizes_for(run: RunFile) -> tuple[dict[str, ModelSizes], dict[str, str]]:
    """Sizes of policy and judge, and how their weights are compressed. config.json is enough.

    Raises InputError for a model that is not on this machine or whose shape is not that of an ordinary decoder."""
    sizes, compressed = {}, {}
    for role, model in {"policy": run.policy, "judge": run.judge, "rollout.base_model": engine_model(run)}.items():
        facts = facts_of(role, model)
        found = sizes_of(facts)
        if found is None:
            raise InputError(
                f"{role} {model}: its config.json does not describe an ordinary decoder (experts, another attention), "
                "whose work a plan can compute; measure on the device: solon measure RUN.toml"
            )
        sizes[model], compressed[model] = found, facts.quantisation
    return sizes, compressed


def engine_model(run: RunFile) -> str:
    """The model whose weights a rollout engine holds: the policy, or what lies below its adapters."""
    return run.rollout.base_model or run.policy


def facts_of(role: str, model: str) -> ModelFacts:
    """From its files, config.json alone if there are no weights. Raises InputError where that is missing."""
    folder = model_folder(model)
    if folder is None:
        name = model if looks_like_hub_name(model) else "ORG/MODEL"
        raise InputError(
            f"{role} {model} is not on this machine, expected a folder with at least its config.json: a plan needs the "
            f"model's shape; run: hf download {name} config.json --local-dir DIR, then add --set {role}=DIR"
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
    engine, judge = engine_model(run), run.judge
    rollout = _engine(
        "rollout", engine, run, run.workers[run.policy_pool], sizes[engine], size, peaks.get("rollout", 0)
    )
    mapped = mapped_bytes(run, sizes[run.policy], on_gpu=run.rollout.num_gpus > 0)
    return [
        replace(rollout, working=rollout.working + mapped),
        _engine("judge", judge, run, run.workers[run.judge_pool], sizes[judge], size, peaks.get("judge", 0)),
        _learner(run, sizes[run.policy], peaks.get("learner", 0)),
    ]


def mapped_bytes(run: RunFile, sizes: ModelSizes, *, on_gpu: bool) -> int:
    """Resident memory of a process on a CPU that is mapped from the object store: whole versions. On a GPU they are in
    the host's memory, which is not the role's; adapters alone are small."""
    if on_gpu or run.publish.way == "adapter":
        return 0
    dtype = run.learn.serving_dtype
    return VERSIONS_MAPPED * sizes.parameters * (4 if dtype == "auto" else BYTES[dtype])


def _engine(
    role: str, model: str, run: RunFile, pool: PoolSpec, whole: ModelSizes, device: int | None, peak: int
) -> RoleBytes:
    """Of one rank of an engine."""
    options, share, sizes = pool.engine_config(seed=run.seed), pool.placement.num_gpus, whole.share(pool.num_ranks)
    room = run.adapter_room if role == "rollout" else None
    reloads = role == "rollout" and room is None
    found = engine_memory(sizes, options, on_gpu=share > 0, reloads=reloads, adapters=room, device=device)
    return RoleBytes(
        role=role,
        model=model,
        workers=pool.size,
        devices=share * pool.num_ranks,
        ranks=pool.num_ranks,
        weights=found.weights,
        cache=found.cache,
        optimiser=0,
        working=found.activations + found.reload,
        runtime=found.runtime,
        measured=peak,
        least_cache=request_cache(sizes, options, on_gpu=share > 0),
        cache_is_left=share > 0 and options.kv_cache_gib is None,
        reload=found.reload,
        takes_adapters=room is not None,
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


NAMES = {"rollout": "rollout engine"}


def lacking(roles: list[RoleBytes], device: Device, sharing: tuple[str, ...] = ()) -> list[str]:
    """What does not fit on its device, a sentence each. sharing: roles that share one."""
    found = []
    for role in roles:
        if role.role in sharing:
            continue
        needs, has, name = role.needs, role.has(device), NAMES.get(role.role, role.role)
        if needs > has:
            part = f" of {device.memory_gib:.1f} (gpu_memory_utilization)" if role.cache_is_left else ""
            whose = f"each of {role.ranks} ranks of the {name}" if role.ranks > 1 else f"the {name}"
            beside = f" ({role.beside})" if role.beside else ""
            request = f", cache {max(role.cache, role.least_cache) / GIB:.1f}" if role.least_cache else ""
            found.append(
                f"{whose} ({Path(role.model).name}) does not fit on one {device.name}: needs {needs / GIB:.1f} GiB, "
                f"has {has / GIB:.1f}{part} (weights {role.weights / GIB:.1f}, optimiser {role.optimiser / GIB:.1f}, "
                f"working {role.working / GIB:.1f}{beside}, runtime {role.runtime / GIB:.1f}{request})"
            )
        elif role.cache < role.least_cache:
            found.append(
                f"the {name} ({Path(role.model).name}) has a cache of {role.cache / GIB:.2f} GiB (kv_cache_gib), "
                f"one request of max_model_len needs {role.least_cache / GIB:.2f}; raise it"
            )
    together = [role for role in roles if role.role in sharing]
    total = sum(role.estimate for role in together)
    if total > device.memory:
        parts = ", ".join(f"{role.role} {role.estimate / GIB:.1f}" for role in together)
        found.append(
            f"{parts} GiB do not fit together on one {device.name}: they need {total / GIB:.1f} GiB, it has "
            f"{device.memory_gib:.1f}"
        )
    return found
