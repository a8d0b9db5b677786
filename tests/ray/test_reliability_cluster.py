"""Faults of the cluster itself: nodes that fail, calls that are lost or doubled, an object store that is too small.
Each test has its own cluster."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.calls import is_there, put_payload
from solon.ledger.staleness import StalenessConfig
from tests.ray.world import QUICK, World

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
DETECTION_S = 0.2 * 3 + 0.5
"""Seconds until a lost node counts as dead, with the settings below."""
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@contextmanager
def nodes() -> Iterator[Any]:
    """A head and two nodes with room for an engine each."""
    from ray.cluster_utils import Cluster

    # Payloads that the driver has read are also on its node: with little room there, not for long.
    head = {"num_cpus": 2, "include_dashboard": False, "resources": {"head": 1}, "_system_config": SYSTEM,
            "object_store_memory": 80 * 2**20}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        rooms = [cluster.add_node(num_cpus=1, resources={"gen": 1}, object_store_memory=300 * 2**20) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster, rooms
    finally:
        ray.shutdown()
        cluster.shutdown()


async def test_payloads_lost_with_their_node_are_detected_and_each_is_generated_again_unchanged():
    """A node with unconsumed payloads is removed: the lost groups are generated again from the same draw, and the
    engine on another node; `World.check` finds any that returned as another group."""
    on_head = {"resources": {"head": 0.1}}
    options = {"judge-0": on_head, "learner": on_head, "rollout-0": {"resources": {"gen": 0.6}}}
    with nodes() as (cluster, rooms):
        async with World(
            # Together more than the head keeps of payloads that were read there, however early that was.
            steps=4, generate_s=0.02, label_s=0.3, tokens=1_600_000, judge_places=1, options=options,
            staleness=StalenessConfig(target_staleness=3, max_staleness=4),
        ) as world:  # fmt: skip
            world.begin()
            await world.until(lambda: world.watcher.batches and world.count("generated") >= 11)
            home = await world.worker("rollout-0").actor.node.remote()
            removed = time.monotonic()
            cluster.remove_node(next(n for n in rooms if n.node_id == home), allow_graceful=False)
            await world.until(lambda: any("a payload is lost" in f["reason"] for f in world.told("group_lost")))
            assert time.monotonic() - removed < DETECTION_S + 2
            await world.ended(timeout_s=60)
        assert {fields["worker"] for fields in world.told("worker_lost")} == {"rollout-0"}


@ray.remote(num_cpus=0, resources={"gen": 0.6}, max_restarts=0, max_task_retries=0)
class Maker:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def make(self, nbytes: int) -> Any:
        return np.zeros(nbytes, np.uint8)


async def test_the_presence_of_a_payload_is_checked_without_fetching_it_and_a_lost_one_is_recognised():
    with nodes() as (cluster, rooms):
        maker = Maker.remote()
        home = ray.get(maker.node.remote())
        far, small = [maker.make.remote(20 * 2**20)], [maker.make.remote(10)]
        mine = put_payload(np.zeros(2**20, np.uint8))
        assert [await is_there(payload_ref) for payload_ref in (far, small, mine)] == [True, True, True]
        places = ray.experimental.get_object_locations(far)[far[0]]["node_ids"]
        assert places == [home]
        cluster.remove_node(next(n for n in rooms if n.node_id == home), allow_graceful=False)
        deadline = time.monotonic() + DETECTION_S + 5
        while await is_there(far):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert [await is_there(payload_ref) for payload_ref in (far, small, mine)] == [False, True, True]


async def test_twice_the_capacity_of_the_object_store_passes_through_it():
    """Object store pressure: nothing waits for ever, and objects without room are on the disk for a while."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=80 * 2**20, _temp_dir=folder,
        )  # fmt: skip
        try:
            async with World(steps=5, generate_s=0.02, label_s=0.02, tokens=1_000_000) as world:
                world.begin()
                await world.ended(timeout_s=90)
        finally:
            ray.shutdown()


PUSH = "CoreWorkerService.grpc_client.PushTask"
CHANCES = {"req_failure_prob": 20, "resp_failure_prob": 20, "in_flight_failure_prob": 10}


@pytest.mark.parametrize(
    "failures",
    [{PUSH: {"num_failures": 10, **CHANCES, "num_lower_bound_resp_failures": 1}}],
    ids=["calls of actors"],
)
def test_calls_that_are_lost_or_duplicated_take_effect_once(failures: dict[str, Any], tmp_path: Path):
    """RPC loss and duplication, in a child: Ray reads this when it starts."""
    outcome = run_with_failures(failures, tmp_path)
    assert outcome["steps"] == 5
    assert outcome["lost"] > 0, "no call failed"


@pytest.mark.soak
def test_a_run_survives_failures_of_any_call_within_ray(tmp_path: Path):
    """A short run with a few failures of every method."""
    outcome = run_with_failures({"*": {"num_failures": 3, **CHANCES}}, tmp_path)
    assert outcome["steps"] == 5


def run_with_failures(failures: dict[str, Any], folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.test_reliability_cluster"],
        cwd=ROOT,
        env={**os.environ, "RAY_testing_rpc_failure": json.dumps(failures)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


async def child() -> None:
    """A run whose calls fail; prints its result. `World.ended` checks that everything happened once."""
    patience = QUICK.model_copy(update={"max_restarts": 1000})
    async with World(steps=5, recovery=patience, ledger={"max_losses": 1000}, start_tries=20) as world:
        world.begin()
        await world.ended(timeout_s=150)
        lost = len(world.told("worker_lost")) + len(world.told("call_lost")) + world.failed_starts
        replaced = len(world.told("worker_recovered"))
        print(json.dumps({"steps": len(world.watcher.batches), "lost": lost, "replaced": replaced}))


if __name__ == "__main__":
    import asyncio

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        asyncio.run(child())
    finally:
        ray.shutdown()
