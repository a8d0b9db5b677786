"""Ranks and real engines on several nodes of one machine: a lost node and a lost driver cost nothing but time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import state as ray_state

from tests.e2e.conftest import NURSERY, solon_command
from tests.e2e.standin_runs import Child, audit, lines, start
from tests.ray.lost_nodes import lose, workers
from tests.ray.machines_apart import machines
from tests.ray.test_reliability_cluster import SYSTEM

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(600)]

STEPS = 7
POOL = "solon.io/pool"


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without CPUs, a node for engines, and two of which either holds the learner."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 << 20, "_system_config": SYSTEM}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        room = {"num_cpus": 2, "object_store_memory": 128 << 20}
        engines = cluster.add_node(**room, labels={POOL: "engine"})
        learners = [cluster.add_node(**room, labels={POOL: "learner"}) for _ in range(2)]
        yield cluster, engines, learners
    finally:
        ray.shutdown()
        cluster.shutdown()


def left_in(address: str) -> list[Any]:
    """Actors and placement groups that still exist."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    actors = [one for one in ray_state.actor_table(None).values() if one["State"] != "DEAD"]
    groups = [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
    return [*actors, *groups]


def run_file(folder: Path, engines: str = "engine", *, learn: str = "num_ranks = 2", num_actors: int = 2) -> Path:
    """engines: the pool of their nodes. learn: settings."""
    text = NURSERY.read_text()
    text = text[: text.index("[evaluate]")].replace("batch_groups = 16", "batch_groups = 4")
    text = text.replace("[rollout]", f'[rollout]\nnum_actors = {num_actors}\nlabels = {{"{POOL}" = "{engines}"}}')
    text = text.replace("[judging]", f'[judging]\nlabels = {{"{POOL}" = "{engines}"}}')
    text = text.replace("[learn]", f'[learn]\n{learn}\nlabels = {{"{POOL}" = "learner"}}')
    path = folder / "run.toml"
    path.write_text(text)
    return path


def told(child: Child, name: str) -> list[dict[str, Any]]:
    return [event for event in lines(child.directory / "events.jsonl") if event["event"] == name]


def test_a_lost_node_with_the_ranks_and_a_lost_driver_cost_no_group(nursery: Any, nodes: Any, tmp_path: Path):
    cluster, engines, learners = nodes
    command = solon_command("train", str(run_file(tmp_path)), "--name", "many", "--steps", str(STEPS), "--set",
                            "checkpoint_every=2", "--resume")  # fmt: skip
    extra = {"RAY_ADDRESS": cluster.address, "SOLON_ALLOW_OPEN_CLUSTER": "1"}
    with start(command, tmp_path, tmp_path / "t", "many", **extra) as child:
        child.wait_for_step(2)
        warm = workers(engines, "Rollout")
        assert len(warm) == 2
        (home,) = [node for node in learners if workers(node, "Learner")]
        assert len(workers(home, "Learner")) == 2
        lose(cluster, home)
        child.wait_for(lambda: bool(told(child, "worker_recovered")), timeout_s=200)
        steps = len({line["step"] for line in lines(child.directory / "metrics.jsonl")})
        child.wait_for_step(steps + 1)
        (lost,) = told(child, "worker_lost")
        assert lost["worker"] == "learner"
        assert workers(engines, "Rollout") == warm
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
        child.wait_until_gone()
    with start(command, tmp_path, tmp_path / "t", "many", **extra) as child:
        assert child.end(200) == 0, child.output[-3000:]
        child.wait_until_gone()
    assert not any(workers(engines, kind) for kind in ("Rollout", "Judge", "Learner"))
    assert left_in(cluster.address) == []
    assert (child.summary["status"], child.summary["steps"]) == ("completed", STEPS)
    found = audit(child.directory)
    assert found.is_balanced
    assert set(found.committed.values()) == set(range(STEPS))


def test_a_run_trains_with_ranks_on_two_machines_each_with_an_address_of_its_own(nursery: Any, tmp_path: Path):
    settings = run_file(tmp_path, "!learner", learn="num_ranks = 2\nnum_nodes = 2", num_actors=1)
    command = solon_command("train", str(settings), "--name", "apart", "--steps", "3")
    with machines(num_cpus=2, store_mib=128) as apart:
        far = [apart.add("learner", store_mib=128) for _ in range(2)]
        with start([*apart.inside, *command], tmp_path, tmp_path / "t", "apart", **apart.joining) as child:
            child.wait_for_step(1)
            assert [len(machine.pids("ray::Learner")) for machine in far] == [1, 1]
            assert child.end(200) == 0, child.output[-3000:]
    assert (child.summary["status"], child.summary["steps"]) == ("completed", 3)
    assert not told(child, "worker_lost")
    assert audit(child.directory).is_balanced
