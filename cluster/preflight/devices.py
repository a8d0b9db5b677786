"""Whether the engines of a run can compute on their devices."""

from __future__ import annotations

from cluster.config.fitting import joins_another, machine_gpus
from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from solon.engines.device import require_build, vllm_build
from solon.errors import InputError
from solon.feedback.judges.endpoint_judge import EndpointFile


def check_devices(run: RunFile) -> list[str]:
    """Raises InputError for engines that cannot share a process on a GPU. Returns what this machine's vLLM does not
    support: another cluster may have another version, and the engines check it themselves when they start."""
    _check_one_engine_a_process(run)
    if joins_another():
        return []
    found = []
    for section, pool in _with_engines(run).items():
        gpus = pool.placement.num_gpus
        if pool.engine.backend != "vllm" or (gpus and not machine_gpus()):
            continue  # a machine without a GPU does not run it in any case
        try:
            require_build("gpu" if gpus else "cpu", vllm_build(), f"[{section}]")
        except InputError as error:
            found.append(f"it is refused here, not on a cluster with another vLLM: {error}")
    return found


def _with_engines(run: RunFile) -> dict[str, PoolSpec]:
    """Pools whose workers build engines, one for each section that sets them."""
    found: dict[str, PoolSpec] = {}
    for pool in run.workers.values():
        models = local_judges(run) if pool.role == "judge" else [pool.model]
        if pool.role != "learner" and models:
            found.setdefault(pool.section, pool)
    return found


def local_judges(run: RunFile) -> list[str]:
    """The judges of one judge actor that run on engines in it, endpoints left out."""
    return [judge for judge in (run.judge, *run.feedback.panel) if not EndpointFile.names(judge)]


def _check_one_engine_a_process(run: RunFile) -> None:
    engines = local_judges(run)
    if run.judging.num_gpus and run.judging.backend == "vllm" and len(engines) > 1:
        raise InputError(
            f"judging.num_gpus = {run.judging.num_gpus:g} with {len(engines)} judges in one actor "
            f"({', '.join(engines)}), expected one: engines of one process share vLLM's workspace on a GPU, and the "
            "second would break the first; let all but one be endpoints, set judging.num_gpus = 0, or remove "
            "[feedback.cascade], [feedback.jury] or the proxy"
        )
