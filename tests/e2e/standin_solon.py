"""`solon` with timed stand-ins for engines and learner: `python -m tests.e2e.standin_solon train RUN.toml ...`

Everything else is real: the command line, the cluster, the driver, the files. `SOLON_STANDIN` is JSON: `seconds` that a
group and a step take, `answers_s` that held-out evaluation takes after training, and `learner`: "refuses" to start,
"fails" in its second step, stands "still": none of its steps moves the policy, or is "bulky": its versions have chunks
that stay on its node, and it writes a checkpoint late. `load_s`: seconds in which an engine takes a version; `marks`: a
folder in which it leaves a file NAME.VERSION when it begins to. `asks`: whether the actors request
the resources in the run file, or none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.calls import Spawn
from cluster.config.pools import PoolSpec
from cluster.pools.base import PoolContext, Role
from solon.cli.main import main
from solon.errors import InputError, RunFailedError
from solon.records import LoadReceipt, Weights
from tests.standins.roles import Spawner, StandinJudge, StandinLearner, StandinRollout
from tests.standins.workers import TimedJudge, TimedLearner, TimedRollout

SETTINGS: dict[str, Any] = json.loads(os.environ.get("SOLON_STANDIN", "{}"))
SECONDS = float(SETTINGS.get("seconds", 0.1))


ANSWERS_S = float(SETTINGS.get("answers_s", 0.0))
LOAD_S = float(SETTINGS.get("load_s", 0.0))
MARKS = str(SETTINGS.get("marks", ""))
BULK, BULKS = 1 << 20, 4
"""Larger than what Ray sends by value, and how many of them make a version."""
WRITE_S = 2.0


class PatientRollout(TimedRollout):
    """Answers the held-out prompts at once before training, and slowly after it."""

    _evaluations = 0

    async def answer(self, prompts: Any, *, seed: int) -> list[str]:
        self._evaluations += 1
        if self._evaluations > 1:
            await asyncio.sleep(ANSWERS_S)
        return await super().answer(prompts, seed=seed)

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """One chunk after the other."""
        if MARKS:
            (Path(MARKS) / f"{self.name}.{weights.version}").touch()
        for number in range(len(weights.chunks)):
            await asyncio.to_thread(weights.chunks.__getitem__, number)
            await asyncio.sleep(LOAD_S / len(weights.chunks))
        return await super().load_weights(weights)


class RefusedLearner(TimedLearner):
    """Refuses to start."""

    def start(self, checkpoint: str) -> Any:
        yield from ()  # Ray asks for a generator
        raise InputError("policy got a stand-in, expected a model; name one")


class FailedLearner(TimedLearner):
    """Fails in its second step, in its own code."""

    def step(self, step: int, *payloads: Any) -> Any:
        if step == 1:
            raise RunFailedError("the loss of step 1 is not finite")
        yield from super().step(step, *payloads)


class StillLearner(TimedLearner):
    """Reports every gradient as 0, all answers as cut."""

    def step(self, step: int, *payloads: Any) -> Any:
        *chunks, (report, manifest) = super().step(step, *payloads)
        cut = {"learn/truncated/share": 1.0, "learn/masked/share": 1.0, "learn/rollouts/sum": 16.0}
        # Ray sends into the generator, which the iterator of a list does not take.
        yield from (chunk for chunk in chunks)
        yield dataclasses.replace(report, moved=False, metrics=report.metrics | cut), manifest


class BulkyLearner(TimedLearner):
    """Its versions are in the object store of its node, and its checkpoints take a while."""

    def chunks(self) -> Iterator[Any]:
        for _ in range(BULKS):
            yield (np.zeros(BULK, np.uint8),)

    @ray.method(concurrency_group="writes")
    def write(self, directory: str) -> None:
        time.sleep(WRITE_S)
        super().write(directory)


LEARNERS = {
    "bulky": BulkyLearner,
    "": TimedLearner,
    "refuses": RefusedLearner,
    "fails": FailedLearner,
    "still": StillLearner,
}


def spawner(actor: Any, *timing: float) -> Spawner:
    """Makes stand-ins in place of the real workers, on any node."""

    def of(pool: PoolSpec, name: str, context: PoolContext) -> Spawn:
        def spawn(made: int) -> Any:
            options = context.options(pool, name, made, threads=1)
            if not SETTINGS.get("asks"):
                options = {key: options[key] for key in ("name", "namespace")}
            return actor.options(**options).remote(*timing, name=name)

        return spawn

    return of


def standin_roles() -> dict[str, Role]:
    """An engine, a judge and a learner with configured durations."""
    learner = ray.remote(num_cpus=0, concurrency_groups={"signs": 1, "writes": 1})(
        LEARNERS[SETTINGS.get("learner", "")]
    )
    return {
        "rollout": StandinRollout(spawner(ray.remote(num_cpus=0)(PatientRollout), SECONDS, 0.1)),
        "judge": StandinJudge(spawner(ray.remote(num_cpus=0)(TimedJudge), SECONDS / 8)),
        "learner": StandinLearner(spawner(learner, SECONDS)),
    }


if __name__ == "__main__":
    main(roles=standin_roles())
