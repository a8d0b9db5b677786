"""The import path of a run's workers: the normal one, plus the folder from which this process imported Solon.

Ray would put the driver's current folder first on their import path: a file there with the name of a library would run
in every worker.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from solon.errors import InputError
from solon.host.own_code import PACKAGES, import_folders, shadow
from solon.host.submitted_job import is_submitted_job

LOOK_TIMEOUT_S = 60.0
"""For all machines together."""


class OwnPathConfig(JobConfig):  # type: ignore[misc]
    """A job to whose workers' import path Ray adds nothing."""

    def _runtime_env_has_working_dir(self) -> bool:
        # Ray checks only this to decide whether it adds the script's folder and the current one.
        return True


def job_config() -> JobConfig:
    """For `ray.init`. A submitted job adds nothing: its workers have the uploaded working directory."""
    # The last one is searched first.
    return OwnPathConfig(_py_driver_sys_path=[] if is_submitted_job() else [*_script_folder(), *import_folders()])


def _script_folder() -> list[str]:
    """The folder of a user's own program around Solon: its workers may run the modules beside it."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None or not getattr(main, "__file__", None):
        return []  # python -m, python -c
    folder = Path(str(main.__file__)).resolve().parent
    if folder == Path(sys.executable).absolute().parent:
        return []  # `solon` itself
    return [str(folder)] if folder in [Path(entry).resolve() for entry in sys.path] else []


def refuse_foreign_code() -> None:
    """Asks every machine of the cluster where it finds Solon's packages.

    Raises InputError for the first machine that does not find all of them in one folder.
    """
    for machine, found in sorted(_look_everywhere().items()):
        if complaint := shadow(found, where=f"on the machine {machine}"):
            raise InputError(complaint)


def _look_everywhere() -> dict[str, dict[str, str]]:
    # Nested, so that Ray sends it by value and a machine without Solon can run it.
    def look(names: tuple[str, ...]) -> dict[str, str]:
        import importlib.util
        import os

        found = {}
        for name in names:
            spec = importlib.util.find_spec(name)
            places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec is not None else [""]
            found[name] = os.path.realpath(places[0]) if places[0] else ""
        return found

    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote(PACKAGES)] = str(node["NodeManagerAddress"])
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_TIMEOUT_S)
    return {asked[answer]: ray.get(answer) for answer in ready}
