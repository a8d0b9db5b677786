"""Engines that do not fit on one device: over how many they are divided (`rollout.tensor_parallel`)."""

from __future__ import annotations

from cluster.config.run_file import RunFile
from cluster.plan.hardware import Device
from cluster.plan.memory import RoleBytes, engine_model, facts_of, lacking, roles_of
from cluster.plan.splits import Split, fitted_running
from cluster.preflight.ranks import check_ranks
from solon.engines.memory import GIB
from solon.errors import InputError
from solon.models.sizes import ModelSizes

TRIED = (2, 4, 8)
"""Devices of one engine."""
SECTIONS = {"rollout": "rollout", "judge": "judging"}


def divided(
    run: RunFile, sizes: dict[str, ModelSizes], device: Device, *, gpus_per_node: int
) -> tuple[RunFile, list[str]]:
    """The run with engines of as many devices as they need, and a sentence for each number that was raised. A number
    that the run file sets above 1 is kept. Raises InputError for an engine that fits on none."""
    reasons = []
    for role, section in SECTIONS.items():
        ranks = getattr(run, section).tensor_parallel
        _require_divisible(run, role, gpus_per_node)
        missing = _missing(run, role, sizes, device)
        if not missing:
            continue
        if ranks > 1:
            raise InputError(f"{missing}; {section}.tensor_parallel = {ranks} is kept: raise it, or {OTHERWISE}")
        if refusal := _why_whole(run, role):
            raise InputError(f"{missing}; {refusal}, or {OTHERWISE}")
        run, tried = _raised(run, role, sizes, device, gpus_per_node)
        ranks = getattr(run, section).tensor_parallel
        if ranks == 1:
            raise InputError(f"{missing}; on several devices of one node: {tried}; {OTHERWISE}")
        reasons.append(f"{section}.tensor_parallel = {ranks}: undivided, {missing}")
    return run, reasons


OTHERWISE = "choose a device with more memory, a shorter max_model_len, or a smaller or a quantised model"


def _raised(
    run: RunFile, role: str, sizes: dict[str, ModelSizes], device: Device, gpus_per_node: int
) -> tuple[RunFile, str]:
    """With the smallest number that fits, else as it was; and what was tried."""
    tried: list[str] = []
    for ranks in TRIED:
        if ranks > gpus_per_node:
            tried.append(f"--gpus-per-node {gpus_per_node} allows no {ranks}")
            break
        wider = with_ranks(run, role, ranks)
        try:
            _require_divisible(wider, role, gpus_per_node)
        except InputError as error:
            tried.append(f"{ranks}: {error}")
            continue
        one = _alone(wider, role, sizes, device)
        if one.fits(device):
            return wider, ""
        tried.append(f"each of {ranks} needs {one.needs / GIB:.1f} GiB")
    return run, "; ".join(tried)


def with_ranks(run: RunFile, role: str, ranks: int) -> RunFile:
    """The same with engines of this role on so many devices."""
    section = SECTIONS[role]
    settings = getattr(run, section).model_copy(update={"tensor_parallel": ranks})
    return run.model_copy(update={section: settings})


def _missing(run: RunFile, role: str, sizes: dict[str, ModelSizes], device: Device) -> str:
    """What one engine of the role lacks; empty: it fits."""
    return "; ".join(lacking([_alone(run, role, sizes, device)], device))


def _alone(run: RunFile, role: str, sizes: dict[str, ModelSizes], device: Device) -> RoleBytes:
    """One engine of the role that gets a whole batch."""
    running = fitted_running(run, Split(engines=1, judges=1, ranks=1, staleness=0))
    run = run.model_copy(update={"rollout": run.rollout.model_copy(update={"max_running": running})})
    return next(one for one in roles_of(run, sizes, device=device) if one.role == role)


def _why_whole(run: RunFile, role: str) -> str:
    """Why the engines of this role have one device, whatever their model."""
    section = SECTIONS[role]
    if getattr(run, section).backend != "vllm":
        return f"{section}.backend = {getattr(run, section).backend!r} divides no engine: set 'vllm'"
    if role == "rollout" and run.publish.way == "adapter":
        return "publish.way = 'adapter' divides no engine: set 'merged'"
    return ""


def _require_divisible(run: RunFile, role: str, gpus_per_node: int) -> None:
    """Raises InputError for ranks that do not divide the model, or that one node has no devices for."""
    section = SECTIONS[role]
    pool = run.workers[run.policy_pool if role == "rollout" else run.judge_pool]
    if pool.num_ranks > gpus_per_node:
        raise InputError(
            f"{section}.tensor_parallel = {pool.num_ranks}, expected at most --gpus-per-node {gpus_per_node}: an "
            "engine stays on one node; lower it, or name nodes with more devices"
        )
    model = engine_model(run) if role == "rollout" else run.judge
    others = len(run.feedback.panel) if role == "judge" else 0
    check_ranks(facts_of(role, model), pool, role=role, others=others)
