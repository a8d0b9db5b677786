"""One more worker for a pool during a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.launch import Launcher
from cluster.pools.base import PoolContext, Role
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.recovery.supervised_lanes import SupervisedRollout
from tests.unit.fakes import FakeRollout
from tests.unit.run_files import make_run


@dataclass
class Worker(FakeRollout):
    """Starts, unless its name forbids it."""

    ended: bool = False

    async def placed(self) -> None: ...

    async def start(self, *arguments: Any) -> str:
        await asyncio.sleep(0)
        if "broken" in self.name:
            raise InputError("the model cannot be loaded")
        return self.name

    def end(self) -> None:
        self.ended = True


class WorkerRole(Role):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Worker] = []

    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        new = [Worker(name) for name in pool.worker_names]
        self.made += new
        return new

    def supervised(self, workers: Sequence[Any], context: PoolContext) -> list[Any]:
        return [SupervisedRollout(worker, context.guard(worker)) for worker in workers]


def make_launcher(folder: Path) -> tuple[Launcher, WorkerRole]:
    role = WorkerRole()
    run = RunFile.load(make_run(folder, "rollout.num_actors = 2"))
    constitution = Constitution.load(folder / "constitution.yaml")
    launcher = Launcher(
        run,
        constitution,
        run_name="night",
        emit=lambda *_, **__: None,
        roles=dict.fromkeys(("rollout", "judge", "learner"), role),
    )
    return launcher, role


async def test_one_more_worker_of_a_pool_is_started_under_its_own_name_and_joins(tmp_path: Path):
    launcher, _ = make_launcher(tmp_path)
    workers = await launcher.launch(on_ready=lambda name: None)
    rollout = workers["rollout"]
    assert [lane.name for lane in rollout.pool] == ["rollout-0", "rollout-1"]
    lane = await launcher.another(rollout, "rollout-2")
    assert lane not in rollout.pool
    await rollout.pool.add(lane)
    assert [lane.name for lane in rollout.pool] == ["rollout-0", "rollout-1", "rollout-2"]
    assert lane.guard in workers.guards
    await rollout.pool.remove("rollout-0")
    assert [lane.name for lane in rollout.pool] == ["rollout-1", "rollout-2"]
    await workers.close()


async def test_a_worker_that_does_not_start_is_ended(tmp_path: Path):
    launcher, role = make_launcher(tmp_path)
    workers = await launcher.launch(on_ready=lambda name: None)
    with pytest.raises(InputError, match="cannot be loaded"):
        await launcher.another(workers["rollout"], "rollout-broken")
    assert [worker.name for worker in role.made if worker.ended] == ["rollout-broken"]
    assert len(workers["rollout"].pool) == 2
