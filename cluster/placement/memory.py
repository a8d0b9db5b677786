"""The memory of a run by role: estimated from model files and settings, compared with the device."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config.fitting import joins_another, machine_gpus
from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.preflight.devices import local_judges
from learners.memory import learner_memory
from solon.engines.base import AdapterRoom
from solon.engines.memory import CONTEXT, GIB, PROCESS, engine_memory
from solon.errors import InputError
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.models.facts import model_folder, read_facts
from solon.models.sizes import ModelSizes, sizes_of

SHOWN = {"audit": "audit judge"}
"""Roles that users know by another name."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """The memory of one actor of a role; `parts` by name, bytes. None: the size of its model is not known."""

    role: str
    model: str
    actors: int
    share: float
    """Of a GPU; 0: it runs on the CPU."""
    parts: dict[str, int] | None
    total: int

    def as_json(self) -> dict[str, Any]:
        """GiB."""
        parts = None if self.parts is None else {name: round(size / GIB, 3) for name, size in self.parts.items()}
        total = None if self.parts is None else round(self.total / GIB, 3)
        return {"role": self.role, "model": self.model, "actors": self.actors, "gpus": self.share} | {
            "gib": parts,
            "total_gib": total,
        }


def estimate(run: RunFile, *, device: int | None) -> list[RoleMemory]:
    """For rollout engines, judges and learner. device: bytes of a GPU's memory, where known. Reads the files of the
    models that are on this machine."""
    models = {run.policy, *local_judges(run), *(pool.model for pool in run.workers.values())}
    sizes = {model: _sizes(model) for model in models if model}
    return estimate_of(run, sizes, device=device)


def estimate_of(run: RunFile, sizes: dict[str, ModelSizes | None], *, device: int | None) -> list[RoleMemory]:
    """The same with given model sizes, by model."""
    roles = []
    for pool in run.workers.values():
        if pool.role == "learner":
            continue
        models = local_judges(run) if pool.role == "judge" else [pool.model]
        received = run.adapter_room if pool.role == "rollout" else None
        roles += [_engine(pool, model, sizes, device, received) for model in models if not EndpointFile.names(model)]
    return [*roles, _learner(run, sizes.get(run.policy))]


def _engine(
    pool: PoolSpec, model: str, sizes: dict[str, ModelSizes | None], device: int | None, room: AdapterRoom | None
) -> RoleMemory:
    share, known = pool.placement.num_gpus, sizes.get(model)
    parts, total = None, 0
    if known is not None:
        reloads, known = pool.role == "rollout" and room is None, known.share(pool.num_ranks)
        found = engine_memory(known, pool.engine, on_gpu=share > 0, reloads=reloads, adapters=room, device=device)
        parts = {
            "weights": found.weights,
            "cache": found.cache,
            "working": found.activations + found.reload,
            "runtime": found.runtime,
        }
        total = found.total
    role = SHOWN.get(pool.role, pool.role)
    actors = pool.size * pool.num_ranks
    return RoleMemory(role=role, model=model, actors=actors, share=share, parts=parts, total=total)


def _learner(run: RunFile, sizes: ModelSizes | None) -> RoleMemory:
    section, parts, total = run.learn, None, 0
    if sizes is not None:
        found = learner_memory(
            sizes,
            section,
            on_gpu=section.num_gpus > 0,
            longest=run.rollout.max_model_len,
            runtime=CONTEXT if section.num_gpus else PROCESS,
            filtered=bool(run.rollout.sampling().filters),
            ranks=section.num_ranks,
            staged=run.checkpoint_async,
        )
        total = found.total
        static = found.weights + found.moments
        parts = {"weights": static, "cache": 0, "working": total - static - found.runtime, "runtime": found.runtime}
    return RoleMemory(
        role="learner", model=run.policy, actors=section.num_ranks, share=section.num_gpus, parts=parts, total=total
    )


def too_much(run: RunFile, roles: Sequence[RoleMemory], *, device: int | None, ram: int | None) -> list[str]:
    """What does not fit, a sentence each. device: bytes of one GPU; ram: of this machine; None: not known."""
    found = []
    on_gpu = [role for role in roles if role.share]
    for role in on_gpu:
        if role.parts is not None and role.parts["cache"] < 0:
            found.append(f"{role.role} {role.model}: its share of the GPU leaves no room for a cache; raise it")
    if device is not None and on_gpu:
        found += _beyond_device(run, on_gpu, device)
    on_cpu = sum(role.total * role.actors for role in roles if not role.share)
    if ram is not None and on_cpu > ram:
        found.append(
            f"workers on the CPU need about {on_cpu / GIB:.1f} GiB of memory, this machine has {ram / GIB:.1f}; lower "
            "num_actors, kv_cache_gib or learn.max_tokens_per_microbatch"
        )
    return found


def _beyond_device(run: RunFile, roles: Sequence[RoleMemory], device: int) -> list[str]:
    if run.gpus <= 1:
        total = sum(role.total * role.actors for role in roles)
        if total <= device:
            return []
        parts = ", ".join(f"{role.role} {role.total * role.actors / GIB:.1f}" for role in roles)
        return [
            f"the workers that share one GPU need about {total / GIB:.1f} GiB ({parts}), it has {device / GIB:.1f}; "
            "lower kv_cache_gib, learn.max_tokens_per_microbatch or max_running, or use more GPUs"
        ]
    return [
        f"{role.role} {role.model} needs about {role.total / GIB:.1f} GiB, its num_gpus = {role.share:g} of a GPU is "
        f"{role.share * device / GIB:.1f}; raise num_gpus, so that fewer share the device, or lower its memory"
        for role in roles
        if role.total > role.share * device
    ]


def device_memory(given_gib: float | None = None) -> int | None:
    """Bytes of a GPU's memory: the given value, or the smallest GPU of this machine when the run starts here; None: not
    known."""
    if given_gib is not None:
        return int(given_gib * GIB)
    smi = shutil.which("nvidia-smi")
    if joins_another() or not machine_gpus() or smi is None:
        return None
    command = [smi, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return min(sizes) << 20 if done.returncode == 0 and sizes else None


def machine_memory() -> int | None:
    """Bytes of this machine or container; None when the run is for another cluster."""
    if joins_another():
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no limit
        return total


def table_rows(roles: Iterable[RoleMemory]) -> list[tuple[str, ...]]:
    """Role, model, actors, where, and GiB of one actor: weights, cache, working, runtime, total."""
    rows = []
    for role in roles:
        place = f"{role.share:g} GPU" if role.share else "CPU"
        parts = ("?",) * 4 if role.parts is None else tuple(f"{size / GIB:.2f}" for size in role.parts.values())
        total = "?" if role.parts is None else f"{role.total / GIB:.2f}"
        rows.append((role.role, Path(role.model).name, str(role.actors), place, *parts, total))
    return rows


def _sizes(model: str) -> ModelSizes | None:
    folder = model_folder(model)
    try:
        return None if folder is None else sizes_of(read_facts(folder))
    except InputError:
        return None  # the check of the model reports this, with its cause
