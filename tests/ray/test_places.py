"""One of Solon's own clusters: who can reach it, what it leaves to neighbours, and what it leaves behind.

One start covers a hostile place: no home yet, a temporary folder with too long a path, dead proxies, an unknown locale,
a terminal of twenty columns, and all of Ray's usual ports taken.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_session.own_cluster import WELL_KNOWN
from tests.documented import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ANSWERS_ALL = {"monitor.py": "metrics", "dashboard.py": "metrics", "DashboardAgent": "metrics"}
"""Pages of metrics, which Ray gives to everyone who can connect: every path of them answers 200."""
DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """What a cluster reports about itself; `left`: its leftovers in the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as folder:
        place = Path(folder)
        long = place / ("x" * 120)
        long.mkdir()
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), DEAD_PROXY)
        variables = os.environ | proxies
        variables |= {"HOME": str(place / "home"), "TMPDIR": str(long), "LC_ALL": "xx_YY", "COLUMNS": "20"}
        variables |= {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
        taken = [take(port) for port in WELL_KNOWN]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.ray.listening"], cwd=place, env=variables, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
        finally:
            for item in taken:
                item.close()
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr == ""
        yield json.loads(done.stdout) | {"left": [path.name for path in long.iterdir()]}


def take(port: int) -> socket.socket:
    """Takes the port, unless another process already listens on it."""
    item = socket.socket()
    with suppress(OSError):
        item.bind(("", port))
        item.listen()
    return item


def test_every_listening_port_of_a_cluster_is_on_loopback_and_requires_the_token_or_is_listed(found: dict[str, Any]):
    ports = found["ports"]
    listed = (ROOT / "docs" / "security.md").read_text()
    assert {one["process"] for one in ports} == {
        "driver", "gcs_server", "monitor.py", "dashboard.py", "raylet/raylet", "DashboardAgent", "RuntimeEnvAgent",
        "worker",
    }  # fmt: skip
    assert {one["address"] for one in ports} == {"127.0.0.1"}
    for one in ports:
        assert re.search(rf"^\|[^|]*`{one['process'].split('/')[-1]}`", listed, re.MULTILINE), (
            f"{one} is not in the table"
        )
    silent = [one for one in ports if not one["http"] and not one["grpc"]]
    assert silent == [], "a port of which nothing is known"
    open_to_all = [one["process"] for one in ports if one["http"] and set(one["http"].values()) == {200}]
    assert sorted(open_to_all) == ["DashboardAgent", "dashboard.py", "monitor.py"], "the pages of figures alone"
    for one in ports:
        if one["process"] in open_to_all and set(one["http"].values()) == {200}:
            continue
        answers = [*one["http"].items(), *(answer.split(": ") for answer in one.get("grpc", ()))]
        # The raylet's health, and the dashboard's own page, are open to everyone; nothing else is.
        refused = [(name, answer) for name, answer in answers if answer not in (401, "UNAUTHENTICATED")]
        assert refused in ([], [("/api/local_raylet_healthz", 200)]), one


def test_a_cluster_leaves_the_usual_ports_of_ray_to_others(found: dict[str, Any]):
    assert {one["port"] for one in found["ports"]} & set(WELL_KNOWN) == set()


def test_a_temporary_folder_with_too_long_a_path_is_replaced_with_a_note(found: dict[str, Any]):
    assert found["files"].startswith(f"/tmp/solon-{os.getuid()}/")
    assert "is longer than" in found["notes"][0]
    assert found["scratch"] == f"{found['files']}/tmp"


def test_a_cluster_that_ended_well_leaves_nothing(found: dict[str, Any]):
    assert not Path(found["files"]).exists()
    assert found["left"] == []
