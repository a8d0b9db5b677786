"""Runs on a cluster without nodes: it starts them when it can, and the run is refused when it never can."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import environment
from tests.e2e.standin_runs import standin_command
from tests.ray.growing_cluster import growing_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NODE_TYPES = {
    "rollout": {"resources": {"CPU": 1}, "labels": {"solon.io/pool": "rollout"}, "max_workers": 2},
    "trainer": {"resources": {"CPU": 2}, "labels": {"solon.io/pool": "trainer"}, "max_workers": 1},
    "late": {"resources": {"CPU": 1}, "labels": {"solon.io/pool": "late"}, "max_workers": 1},
}
POOLS = (
    'rollout.labels={"solon.io/pool" = "rollout"}',
    'judging.labels={"solon.io/pool" = "trainer"}',
    'learn.labels={"solon.io/pool" = "trainer"}',
    *(f"{section}.num_cpus=1" for section in ("rollout", "judging", "learn")),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with growing_cluster(NODE_TYPES) as joining:
        yield joining


def solon(cluster: dict[str, str], folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """A run of stand-ins that request the resources in the run file."""
    command = standin_command("run", "--steps", "2")
    for setting in (*POOLS, *settings):
        command += ["--set", setting]
    standin = json.dumps({"seconds": 0.05, "asks": True})
    return subprocess.run(
        command, cwd=folder, env=environment(SOLON_STANDIN=standin, **cluster), capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip


def test_a_run_that_the_cluster_can_never_hold_is_refused_at_once_with_the_table(
    cluster: dict[str, str], tmp_path: Path
):
    refused = solon(cluster, tmp_path, "learn.num_cpus=4")
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "needs 6 CPU(s) (1 x rollout 1, 1 x judging 1, learn 4), the cluster can have 5;" in refused.stderr
    rows = [line.split() for line in refused.stderr.splitlines()]
    assert ["1", "x", "learn", "4", "CPU,", "solon.io/pool=trainer", "nowhere"] in rows
    assert ["trainer", "0", "1", "2", "CPU,", "solon.io/pool=trainer"] in rows
    assert not (tmp_path / "runs").exists()


def test_a_run_without_worker_nodes_reports_its_waits_and_trains_when_the_nodes_have_joined(
    cluster: dict[str, str], tmp_path: Path
):
    run = solon(cluster, tmp_path)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    said = [line for line in run.stdout.splitlines() if "waiting for" in line]
    # How many still wait at the first line depends on how fast a node starts here.
    asks = r"((rollout-0|judge-0|learner)(, )?)+ asks? 1 CPU, solon.io/pool=(rollout|trainer); "
    line = rf"waiting for [123] of 3 actors: ({asks})+nodes: 1 ray.head.default"
    assert any(re.search(line, text) for text in said), run.stdout
    events = [json.loads(line) for line in (tmp_path / "runs" / "run" / "events.jsonl").read_text().splitlines()]
    (waited,) = (event for event in events if event["event"] == "waiting_for_nodes")
    assert waited["workers"]
    assert set(waited["workers"]) <= {"judge-0", "learner", "rollout-0"}
    assert json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())["steps"] == 2


def test_nodes_that_do_not_come_in_time_end_a_run_with_the_table_and_how_to_look(
    cluster: dict[str, str], tmp_path: Path
):
    """The autoscaler looks every three seconds, and a node takes longer to start than the run waits."""
    late = 'learn.labels={"solon.io/pool" = "late"}'
    ended = solon(cluster, tmp_path, late, "recovery.node_timeout_s=4")
    assert ended.returncode == 1, (ended.stdout + ended.stderr)[-3000:]
    found = re.search(r"no place for (.*) within recovery.node_timeout_s = 4 s", ended.stderr)
    assert found, ended.stderr
    assert "learner" in found[1].split(", ")
    assert (
        "see with `ray status` what has the nodes, or why none starts; then ask for less, or raise it" in ended.stderr
    )
    rows = [line.split() for line in ended.stderr.splitlines()]
    assert ["1", "x", "learn", "1", "CPU,", "solon.io/pool=late", "late"] in rows
    assert "Traceback" not in ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "--resume" in summary["end"]["resume"]
