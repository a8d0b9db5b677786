"""A whole run on stand-ins, as a process that a test can kill: `python -m tests.e2e.standin_run FOLDER [options]`.

Everything is real but the models: the run file, the checks, the driver, checkpoints, Ray.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cluster.driver
import cluster.train
from actors.judge import RemoteJudge
from actors.learner import RemoteLearner
from actors.rollout import RemoteRollout
from cluster.config.run_file import RunFile
from cluster.launch import Launcher
from cluster.launch import cluster as open_cluster
from solon.checkpoints.folder import CheckpointFolder
from solon.cli.view import SilentView
from tests.ray.world import EngineActor, JudgeActor, LearnerActor

NAME = "run"


class Standins(Launcher):
    """Real options, names and places; another class in the actors."""

    pids = ""
    learn_s = 0.1

    def rollout(self) -> list[RemoteRollout]:
        section = self._run.rollout
        return [
            RemoteRollout(
                lambda made, name=f"rollout-{n}": EngineActor.options(**self._options(name, section, made)).remote(
                    0.05, name=name, slots=4, tokens=64, pids=self.pids
                ),
                name=f"rollout-{n}",
                groups_at_once=8,
            )
            for n in range(section.num_actors)
        ]

    def judges(self) -> list[RemoteJudge]:
        section = self._run.judging
        return [
            RemoteJudge(
                lambda made: JudgeActor.options(**self._options("judge-0", section, made)).remote(
                    0.01, name="judge-0", pids=self.pids
                ),
                name="judge-0",
                groups_at_once=8,
            )
        ]

    def learner(self) -> RemoteLearner:
        section = self._run.learn
        return RemoteLearner(
            lambda made: LearnerActor.options(**self._options("learner", section, made)).remote(
                self.learn_s, name="learner", pids=self.pids
            ),
            name="learner",
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dies-at", default="", help="STAGE:STEP of writing a checkpoint")
    options = parser.parse_args()
    if options.dies_at:
        stage, step = options.dies_at.split(":")
        cluster.driver.CheckpointFolder = dying_folder(stage, int(step))  # type: ignore[misc, assignment]
    Standins.pids = str(options.folder / "pids")
    (options.folder / "pids").mkdir(exist_ok=True)
    run = RunFile.load(options.folder / "run.toml", overrides=[f"steps={options.steps}"])
    cluster.train.cluster = partial(open_cluster, dashboard=False)  # type: ignore[assignment]  # half of what a start takes
    summary = cluster.train.train(
        run, name=NAME, default_name=NAME, root=options.folder, view=SilentView(), resume=options.resume,
        launcher=Standins,
    )  # fmt: skip
    print(summary["status"])


def dying_folder(stage: str, step: int) -> Any:
    """A folder of checkpoints that ends the process at once at a stage of writing one."""

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
