"""Spot machines that go sooner than their notice says, while a version is published: an engine's in the middle of
taking it, then the learner's, which holds its chunks. A file of its own, as this process joins that cluster and can be
a part of one only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.standin_runs import Child, audit, lines, standin_command, start
from tests.ray.lost_nodes import lose
from tests.ray.test_drained_machines import drain, machines, node_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

STEPS = 14
LOAD_S = 1.2
"""Of an engine; both take a version one after the other, which is most of the time of a step."""


def told(child: Child, name: str, **fields: Any) -> list[dict[str, Any]]:
    found = [event for event in lines(child.directory / "events.jsonl") if event["event"] == name]
    return [event for event in found if all(event.get(key) == value for key, value in fields.items())]


def taken(marks: Path, engine: str) -> int:
    """The version that an engine took last, or is taking."""
    return max((int(path.name.rpartition(".")[2]) for path in marks.glob(f"{engine}.*")), default=-1)


def reclaim(child: Child, cluster: Any, marks: Path, worker: str, *, engine: str) -> int:
    """A notice for the machine of a worker; it is gone long before, in the middle of the engine's next load. Returns
    the version of that load."""
    node = node_of(worker)
    drain(cluster.address, node, within_s=120)
    child.wait_for(lambda: bool(told(child, "worker_draining", worker=worker)), timeout_s=60)
    before = taken(marks, engine)
    child.wait_for(lambda: taken(marks, engine) > before, timeout_s=60)
    time.sleep(LOAD_S / 3)
    lose(cluster, next(one for one in cluster.list_all_nodes() if one.node_id == node))
    return taken(marks, engine)


@pytest.mark.soak  # after the loss Ray retries fetches: 31 s on a quiet machine, minutes on a loaded one
def test_machines_reclaimed_in_the_middle_of_a_publication_cost_no_group_and_each_has_one_cause(tmp_path: Path):
    marks = tmp_path / "marks"
    marks.mkdir()
    pools = {"rollout": "rollout", "judging": "head", "learn": "learner"}
    settings = [f'{section}.labels={{"solon.io/pool" = "{pool}"}}' for section, pool in pools.items()]
    settings += [f"{section}.num_cpus=1" for section in pools]
    settings += ["rollout.num_actors=2", "checkpoint_every=3", "recovery.backoff_s=0"]
    command = standin_command("run", "--steps", str(STEPS))
    for setting in settings:
        command += ["--set", setting]
    standin = {"seconds": 0.1, "asks": True, "learner": "bulky", "load_s": LOAD_S, "marks": str(marks)}
    with (
        machines() as (cluster, joining),
        start(command, tmp_path, tmp_path / "t", "run", SOLON_STANDIN=json.dumps(standin), **joining) as child,
    ):
        child.wait_for_step(2)
        version = reclaim(child, cluster, marks, "rollout-1", engine="rollout-1")
        # The version that it did not take is attested on the other engine, and training goes on.
        child.wait_for(lambda: bool(told(child, "worker_lost", worker="rollout-1")), timeout_s=60)
        child.wait_for(lambda: taken(marks, "rollout-0") > version, timeout_s=60)
        reclaim(child, cluster, marks, "learner", engine="rollout-0")
        child.wait_for(lambda: bool(told(child, "worker_recovered", worker="learner")), timeout_s=90)
        assert child.end(timeout_s=150) == 0, child.output[-3000:]
        lost = told(child, "worker_lost")
        assert sorted(event["worker"] for event in lost) == ["learner", "rollout-1"], lost
        assert (child.summary["status"], child.summary["steps"]) == ("completed", STEPS)
        weights = child.summary["weights"]
        assert weights["published"] == weights["attested"] == STEPS, weights
        found = audit(child.directory)
        assert found.is_balanced
        assert set(found.committed.values()) == set(range(STEPS))
        assert all(event["same_weights"] for event in told(child, "learner_trained_again"))
