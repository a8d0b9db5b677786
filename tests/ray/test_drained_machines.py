"""A whole run whose machines are drained under it: an engine and the learner move before their machines go. A file of
its own, as this process joins that cluster and can be a part of one only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import state as ray_state
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2 as protocol
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.e2e.standin_runs import audit, lines, standin_command, start

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@contextmanager
def machines() -> Iterator[tuple[Any, dict[str, str]]]:
    """A head for the driver and the judge, and two machines each for an engine and for the learner."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "labels": {"solon.io/pool": "head"},
            "object_store_memory": 100 * 2**20}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for pool in ("rollout", "rollout", "learner", "learner"):
            cluster.add_node(num_cpus=1, labels={"solon.io/pool": pool}, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield (
            cluster,
            {
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": cluster.address,
                "SOLON_ALLOW_OPEN_CLUSTER": "1",
            },
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote(num_cpus=0)
class Held:
    """Keeps its node."""

    def ping(self) -> None: ...


def node_of(actor: str) -> str:
    """The machine of a living actor."""
    for found in ray_state.actor_table(None).values():
        if found["Name"] == actor and found["State"] == "ALIVE":
            return str(found["Address"]["NodeID"])
    raise AssertionError(f"no actor named {actor}")


def drain(address: str, node: str, *, within_s: float) -> float:
    """Announces that a machine goes, as a spot notice does; returns when, on time.monotonic()."""
    deadline_ms = int((time.time() + within_s) * 1000)
    accepted, why = GcsClient(address=address).drain_node(
        node, protocol.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot notice", deadline_ms
    )
    assert accepted, why
    return time.monotonic() + within_s


def test_an_engine_and_a_learner_move_before_their_machines_go_and_no_group_is_lost(tmp_path: Path):
    pools = {"rollout": "rollout", "judging": "head", "learn": "learner"}
    settings = [f'{section}.labels={{"solon.io/pool" = "{pool}"}}' for section, pool in pools.items()]
    settings += [f"{section}.num_cpus=1" for section in pools]
    settings += ["checkpoint_every=1000", "checkpoint_first=0"]
    command = standin_command("run", "--steps", "80")
    for setting in settings:
        command += ["--set", setting]
    standin = json.dumps({"seconds": 0.2, "asks": True})
    with (
        machines() as (cluster, joining),
        start(command, tmp_path, tmp_path / "t", "run", SOLON_STANDIN=standin, **joining) as child,
    ):
        events = child.directory / "events.jsonl"

        def told(name: str) -> list[dict[str, Any]]:
            return [event for event in lines(events) if event["event"] == name]

        child.wait_for_step(5)
        gone = {node_of("rollout-0"), node_of("learner")}
        # Ray ends a drained node without actors at once. Here its processes would be taken for the driver's own.
        kept = [Held.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote() for n in gone]
        ray.get([one.ping.remote() for one in kept])
        ends = [drain(cluster.address, node, within_s=300) for node in gone]
        child.wait_for(lambda: told("lane_left") and told("worker_recovered"), timeout_s=60)
        assert time.monotonic() < min(ends), "they moved too late"
        assert child.end(timeout_s=200) == 0, child.output[-3000:]
        assert {event["worker"] for event in told("worker_draining")} == {"rollout-0", "learner"}
        assert [event["worker"] for event in told("lane_joined")] == ["rollout-1"]
        assert [event["worker"] for event in told("lane_left")] == ["rollout-0"]
        (lost,) = told("worker_lost")
        assert (lost["worker"], lost["cause"]) == ("learner", "its machine is about to go")
        # It continued from a checkpoint of that very moment: nothing was trained again.
        assert told("checkpoint")[0]["time"] <= lost["time"]
        assert not told("learner_trained_again")
        assert child.summary["steps"] == 80
        assert audit(child.directory).is_balanced


def test_reading_which_workers_are_drained_never_fails():
    from cluster.elasticity import drained_workers

    assert drained_workers([]) == {}
