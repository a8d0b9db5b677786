"""A learner of two ranks on real actors: it trains what one process trains, and survives whatever happens to a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.config.run_file import RunFile
from cluster.pools.base import PoolContext
from cluster.pools.learner import LearnerRole
from solon.clock import Clock
from solon.constitution.constitution import Constitution
from solon.engines.chunks import named_tensors
from solon.ledger.ledger import Lease
from tests.chaos.cluster_of_our_own import FAILURES
from tests.chaos.real_run import LearnerThatFails
from tests.unit.learner_builders import random_groups, write_llama
from tests.unit.run_files import CONSTITUTION

pytestmark = pytest.mark.ray

STEPS = 3


class Learner:
    """A supervised learner of some ranks, and what was told of it."""

    def __init__(self, folder: Path, model: str, *, ranks: int, failures: Path, **more: Any) -> None:
        learn = {
            "num_ranks": ranks, "num_cpus": 0.5, "advantages": "group", "learning_rate": 1e-3, "rank_timeout_s": 10,
            **more,
        }  # fmt: skip
        recovery = {"beat_every_s": 1, "beat_timeout_s": 30, "backoff_s": 0, "max_restarts": 10}
        raw = {
            "policy": model, "judge": model, "prompts": "p", "constitution": "c", "learn": learn, "recovery": recovery,
        }  # fmt: skip
        self.run = RunFile.parse(raw, source="test")
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._folder = folder
        context = PoolContext(
            run=self.run,
            constitution=Constitution.parse(CONSTITUTION, what="test"),
            namespace=f"learner-{ranks}-{folder.name}",
            secret=b"",
            checkpoint="",
            emit=lambda name, **fields: self.events.append((name, fields)),
            clock=Clock(),
        )

        class Told(LearnerThatFails):
            """It looks for the orders to fail in this folder."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                os.environ[FAILURES] = str(failures)
                super().__init__(*arguments, **named)

            def process_id(self) -> int:
                return os.getpid()

        options: dict[str, Any] = {
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {"signs": 1, "writes": 1},
        }
        role = LearnerRole(ray.remote(**options)(Told))
        (self.worker,) = role.workers(self.run.workers["learner"], context)
        (self.lane,) = role.supervised([self.worker], context)
        self.references: list[Any] = []

    async def start(self) -> Any:
        await self.worker.placed()
        manifest, weights = await self.worker.start("")
        self.lane.guard.start()
        return manifest, weights

    def lease(self, step: int) -> Lease:
        payloads = []
        for one in random_groups(5, 3, seed=step, version=step):
            pair = [ray.put(one.group)], [ray.put(one.feedback)]
            payloads.append(pair)
        self.references += payloads
        return Lease(step, step, tuple(range(5)), (0,) * 5, tuple(payloads))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    def pids(self) -> list[int]:
        return [ray.get(actor.process_id.remote()) for actor in self.worker.actors]


@asynccontextmanager
async def learner(folder: Path, model: str, *, ranks: int, **more: Any) -> AsyncIterator[Learner]:
    """more: settings under `learn`."""
    failures = folder / "failures"
    failures.mkdir(exist_ok=True)
    made = Learner(folder, model, ranks=ranks, failures=failures, **more)
    try:
        yield made
    finally:
        await made.lane.guard.close()
        made.worker.end()
        if ranks > 1:
            ray.util.remove_placement_group(made.worker.node)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


def tensors_of(weights: Any) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy().copy() for name, tensor in named_tensors(weights)}


async def test_two_ranks_publish_what_one_process_publishes(ray_cluster: Any, llama: str, tmp_path: Path):
    published = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        async with learner(folder, llama, ranks=ranks) as made:
            manifest, weights = await made.start()
            for step in range(STEPS):
                _, manifest, weights = await made.lane.step(made.lease(step))
            assert manifest.version == STEPS
            published.append(tensors_of(weights))
    alone, together = published
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert np.linalg.norm(value - together[name]) <= 1e-5 * np.linalg.norm(value), name


@pytest.mark.parametrize("fault", ["kill", "stop", "nan", "change", "raise"])
async def test_whatever_happens_to_a_rank_the_step_is_trained_once_and_the_cause_is_told(
    ray_cluster: Any, llama: str, tmp_path: Path, fault: str
):
    async with learner(tmp_path, llama, ranks=2) as made:
        await made.start()
        leases = [made.lease(step) for step in range(STEPS)]
        fingerprints = []
        for step, lease in enumerate(leases):
            if step == 2:
                if fault in ("kill", "stop"):
                    os.kill(made.pids()[1], signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
                else:
                    (tmp_path / "failures" / {"raise": "learner"}.get(fault, f"rank-{fault}")).touch()
            _, manifest, _ = await made.lane.step(lease)
            fingerprints.append(manifest.fingerprint)
        assert made.told("learner_trained_again") == [{"steps": 2, "same_weights": True}]
        (lost,) = made.told("worker_lost")
        expected = {
            "kill": "rank 1 of 2 was lost",
            "stop": "rank 1 of 2 did not answer",
            "nan": "computed a number that is not finite from a microbatch of which another rank",
            "change": "changed between two steps",
            "raise": "illegal memory access",
        }
        assert expected[fault] in lost["cause"]
