"""`ray job submit` with the stock client, against a cluster started with the stock command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RAY, ROOT, ray_head

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A cluster that asks nobody for a token, and gives a job that is stopped the time to end."""
    with ray_head(RAY_AUTH_MODE="disabled", RAY_JOB_STOP_WAIT_TIME_S="60") as variables:
        yield variables


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
    done = submit(variables, "env", f"SOLON_RUNS={tmp_path}", "SOLON_ALLOW_OPEN_CLUSTER=1", *command)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", 5)
