"""A whole run on stand-ins, as a process that a test can kill: `python -m tests.e2e.standin_run FOLDER [options]`.

Everything is real except the models: the run file, the checks, the driver, checkpoints, Ray.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cluster.train
import solon.checkpoints.folder
from cluster.config.run_file import RunFile
from cluster.launch import cluster as open_cluster
from cluster.pools.base import Role
from solon.checkpoints.folder import CheckpointFolder
from solon.cli.view import SilentView
from tests.ray.world import EngineActor, JudgeActor, LearnerActor
from tests.standins.roles import StandinJudge, StandinLearner, StandinRollout

NAME = "run"


def standin_roles(pids: str) -> dict[str, Role]:
    """Real options, names and placement; another class in the actors. pids: where each one writes its process id."""
    common: dict[str, Any] = {"pids": pids, "threads": 1}
    return {
        "rollout": StandinRollout(
            lambda pool, name, context: context.spawner(EngineActor, pool, name, 0.05, slots=4, tokens=64, **common)
        ),
        "judge": StandinJudge(lambda pool, name, context: context.spawner(JudgeActor, pool, name, 0.01, **common)),
        "learner": StandinLearner(lambda pool, name, context: context.spawner(LearnerActor, pool, name, 0.1, **common)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dies-at", default="", help="STAGE:STEP of writing a checkpoint")
    options = parser.parse_args()
    if options.dies_at:
        stage, step = options.dies_at.split(":")
        solon.checkpoints.folder.CheckpointFolder = dying_folder(stage, int(step))  # type: ignore[misc]
    pids = str(options.folder / "pids")
    (options.folder / "pids").mkdir(exist_ok=True)
    run = RunFile.load(options.folder / "run.toml", overrides=[f"steps={options.steps}"])
    cluster.train.cluster = partial(open_cluster, dashboard=False)  # type: ignore[assignment]  # half of what a start takes
    summary = cluster.train.train(
        run, name=NAME, default_name=NAME, root=options.folder, view=SilentView(), resume=options.resume,
        roles=standin_roles(pids),
    )  # fmt: skip
    print(summary["status"])


def dying_folder(stage: str, step: int) -> Any:
    """A folder of checkpoints that kills the process at a chosen stage of writing one."""

    class Dying(CheckpointFolder):
        def begin(self, step_: int) -> Path:
            def die(name: str) -> None:
                if (name, step_) == (stage, step):
                    sys.stdout.flush()
                    os._exit(9)

            self.failpoint = die
            return super().begin(step_)

    return Dying


if __name__ == "__main__":
    main()
