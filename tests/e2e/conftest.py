"""Whole runs in child processes, started as a user starts them. The models are grown once for all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NURSERY = ROOT / "examples" / "nursery.toml"
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "7ab1e5" * 8


@dataclass(frozen=True)
class Run:
    """A finished `solon` process and the directory it wrote."""

    returncode: int
    output: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "events.jsonl").read_text().splitlines()]

    def table(self, name: str) -> list[dict[str, Any]]:
        """All rows of `rollouts` or `labels`."""
        import pyarrow.parquet as pq

        parts = sorted((self.directory / name).glob("*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]


def solon_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "solon", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """For a child: the project is importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", **extra}


def run_solon(tmp_path: Path, name: str, *arguments: str, timeout: float = 400) -> Run:
    """`solon train examples/nursery.toml --name NAME ...` in a folder of its own."""
    done = subprocess.run(
        solon_command("train", str(NURSERY), "--name", name, *arguments),
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout, tmp_path / "runs" / name)


@pytest.fixture(scope="session")
def nursery() -> Any:
    """The grown models; the first test that needs them waits for the growth."""
    from nursery.grow import grow

    return grow(progress=False)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


@contextmanager
def ray_head(**extra: str) -> Iterator[dict[str, str]]:
    """`ray start --head --block` with free ports; ended by its own process id.

    Gives the environment of its clients; `GCS` in it is where drivers join.
    """
    gcs, dashboard, client, metrics, agent = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        variables = environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **extra)
        log = (Path(folder) / "head.log").open("w")
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
             f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
             f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
             f"--temp-dir={folder}/t", "--object-store-memory=268435456"],
            env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield {
                **variables,
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
                "GCS": f"127.0.0.1:{gcs}",
            }
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            log.close()


@pytest.fixture(scope="module")
def token_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """For clients of a cluster that requires a token, which is in their ~/.ray/auth_token; nothing else is set."""
    home = tmp_path_factory.mktemp("home")
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as variables:
        given = {key: value for key, value in variables.items() if not key.startswith("RAY_AUTH")}
        given["HOME"] = str(home)
        asking = {**given, "RAY_AUTH_MODE": "token"}
        for _ in range(60):  # the dashboard answers a few seconds after the head is up
            done = subprocess.run(
                [RAY, "job", "list"], cwd=home, env=asking, capture_output=True, text=True, timeout=60, check=False
            )
            if done.returncode == 0:
                break
            time.sleep(1)
        else:
            raise AssertionError(done.stdout + done.stderr)
        yield given
