"""`ray job submit` with the stock client, against a cluster started with the stock command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """`ray start --head --block` with free ports; ended by its own process id. Gives the client's environment."""
    gcs, dashboard, client, metrics, agent = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        variables = environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        variables["RAY_AUTH_MODE"] = "disabled"
        variables["RAY_JOB_STOP_WAIT_TIME_S"] = "60"
        log = (Path(folder) / "head.log").open("w")
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
             f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
             f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
             f"--temp-dir={folder}/t", "--object-store-memory=268435456"],
            env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            addresses = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "GCS": f"127.0.0.1:{gcs}"}
            yield {**variables, **addresses}
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            log.close()


def submit(variables: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    for _ in range(30):  # the dashboard answers a few seconds after the head is up
        done = subprocess.run(
            [RAY, "job", "submit", "--working-dir", ".", "--", *entrypoint],
            cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if "Failed to connect" not in done.stdout + done.stderr:
            return done
    raise AssertionError(done.stdout + done.stderr)


def test_the_stock_client_trains_five_steps_on_a_running_cluster(nursery: Any, head: dict[str, str], tmp_path: Path):
    variables = {**head, "SOLON_RUNS": str(tmp_path)}
    command = ["python", "-m", "solon", "train", "examples/nursery.toml", "--steps", "5", "--name", "job"]
    done = submit(variables, "env", f"SOLON_RUNS={tmp_path}", *command)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", 5)
