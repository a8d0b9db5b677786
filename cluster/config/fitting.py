"""Fits a run file to its models and the machine. Only defaults change; values that were set stay."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.config.sections import RolloutSection
from solon.engines.device import NEEDS_A_GPU, vllm_build
from solon.engines.lengths import fit_length
from solon.errors import InputError
from solon.models.facts import context_of

LEAST_SHARE = 0.05
"""CPUs of an actor; a machine with fewer is too small for the run."""
_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_GPUS, _DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")


def fit_run(run: RunFile, *, cpus: float | None = None) -> tuple[RunFile, tuple[str, ...]]:
    """The run with lengths that fit its policy and CPUs that the machine has, and a sentence for each change.

    cpus: of this machine, when the run starts its own cluster; None: the cluster is not known. Raises InputError when a
    value that was set does not fit.
    """
    rollout, notes = _fit_lengths(run.rollout, context_of(run.policy))
    notes += _fitted_judges(run)
    if rollout is not run.rollout:
        run = run.with_rollout(rollout)
    if cpus is not None:
        run, more = _fit_cpus(run, cpus)
        notes += more
        run, more = _fit_backends(run, vllm_build())
        notes += more
    return run, tuple(notes)


def own_cpus() -> float | None:
    """CPUs of the cluster that a run would start here; None when it joins another one."""
    return None if joins_another() else machine_cpus()


def machine_cpus() -> float:
    """CPUs of this machine or container, as Ray counts them."""
    count = float(os.cpu_count() or 1)
    try:
        quota, period = _CGROUP.read_text(encoding="utf-8").split()
        return max(1.0, min(count, float(int(quota) // int(period))))
    except (OSError, ValueError):  # no limit
        return count


def too_large_for_here(run: RunFile) -> str | None:
    """What the machine lacks to run this file; None: nothing, or the run joins another cluster."""
    if joins_another():
        return None
    gpus, cpus = machine_gpus(), machine_cpus()
    if run.learn.num_nodes > 1:
        return (
            f"learn.num_nodes = {run.learn.num_nodes}, this machine is one node: it is refused here, not on a cluster; "
            "set learn.num_nodes = 1, or join a cluster with RAY_ADDRESS"
        )
    if run.gpus > gpus:
        return (
            f"the run needs {run.gpus:g} GPU(s), this machine has {gpus}: it is refused here, not on a larger cluster"
        )
    if run.cpus > cpus + 1e-6:
        return (
            f"the run needs {run.cpus:g} CPU(s), this machine has {cpus:g}: it is refused here, not on a larger "
            "cluster; lower num_cpus in [rollout], [judging] and [learn], or learn.num_ranks"
        )
    return None


def machine_gpus() -> int:
    """GPUs that a process of this machine sees, as far as known without a driver; 1 when there are some but the
    number is not known."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([one for one in chosen.split(",") if one.strip() and not one.strip().startswith("-")])
    if _GPUS.is_dir() and (count := len(list(_GPUS.iterdir()))):
        return count
    count = len([path for path in _DEVICES.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    return count or int(any((_DEVICES / name).exists() for name in ("dxg", "kfd")))


def joins_another() -> bool:
    """Whether a run that starts here joins an existing cluster."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def _fit_lengths(rollout: RolloutSection, context: int | None) -> tuple[RolloutSection, list[str]]:
    fitted = fit_length(rollout, context, where="rollout.max_model_len")
    if fitted is rollout:
        return rollout, []
    length = fitted.max_model_len
    notes = [f"rollout.max_model_len is {length}, the policy's context"]
    if fitted.max_tokens < length:
        return fitted, notes
    if fitted.max_tokens != RolloutSection.model_fields["max_tokens"].default:
        raise InputError(
            f"rollout.max_tokens = {fitted.max_tokens} leaves no room for a prompt in the policy's context of {length} "
            "tokens; lower rollout.max_tokens"
        )
    if fitted.min_tokens > length // 2:
        raise InputError(
            f"rollout.min_tokens = {fitted.min_tokens} exceeds half of the policy's context of {length} tokens, which "
            "an answer gets; lower rollout.min_tokens, or set rollout.max_tokens"
        )
    notes.append(f"rollout.max_tokens is {length // 2}, half of it")
    return fitted.model_copy(update={"max_tokens": length // 2}), notes


def _fitted_judges(run: RunFile) -> list[str]:
    """The engine of each judge gets its own length: see `EngineSection.engine`."""
    named: dict[str, PoolSpec] = {}
    for pool in run.workers.values():
        if pool.role not in ("rollout", "learner"):
            panel = run.feedback.panel if pool.role == "judge" else ()
            named |= {model: pool for model in (pool.model, *panel) if model not in named}
    notes = []
    for judge, pool in named.items():
        context, key = context_of(judge) if judge else None, pool.key("max_model_len")
        if fit_length(pool.engine, context, where=f"{key} (judge {judge})") is not pool.engine:
            notes.append(f"{key} is {context} for {judge}, its context")
    return notes


def _fit_backends(run: RunFile, build: str) -> tuple[RunFile, list[str]]:
    """vLLM for GPUs does not compute on a CPU: engines without a GPU use the other backend, unless one was set."""
    stuck = {
        name: pool.model_copy(update={"engine": pool.engine.model_copy(update={"backend": "transformers"})})
        for name, pool in run.workers.items()
        if build == "gpu"
        and pool.role != "learner"
        and pool.placement.num_gpus == 0
        and "backend" not in pool.engine.model_fields_set
    }
    if not stuck:
        return run, []
    keys = list(dict.fromkeys(pool.key("backend") for pool in stuck.values()))
    verb = "is" if len(keys) == 1 else "are"
    note = f"{' and '.join(keys)} {verb} transformers: num_gpus is 0 and {NEEDS_A_GPU}; num_gpus above 0 uses it"
    return run.with_pools(stuck), [note]


def _fit_cpus(run: RunFile, cpus: float) -> tuple[RunFile, list[str]]:
    """Lower the defaults until all actors fit; values that a person set stay."""
    pools = run.workers
    free = {name: pool for name, pool in pools.items() if "num_cpus" not in pool.placement.model_fields_set}
    actors = sum(pool.size * pool.num_ranks for pool in free.values())
    if run.cpus <= cpus or not actors:
        return run, []
    taken = run.cpus - sum(pool.size * pool.num_ranks * pool.placement.num_cpus for pool in free.values())
    share = math.floor((cpus - taken) / actors * 100) / 100
    if share < LEAST_SHARE:
        return run, []
    smaller = {
        name: pool.model_copy(update={"placement": pool.placement.model_copy(update={"num_cpus": share})})
        for name, pool in free.items()
    }
    places = " and ".join(dict.fromkeys(pool.key("num_cpus") for pool in free.values()))
    note = f"{places} are {share:g}: with the defaults the run needs {run.cpus:g} CPUs, this machine has {cpus:g}"
    return run.with_pools(smaller), [note]
