"""A Ray head that drivers come and go on: started here, ended by its process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120
"""On a busy machine."""


@dataclass(frozen=True)
class Head:
    """The head's process, and the environment in which a driver finds it."""

    process: psutil.Process
    environment: dict[str, str]

    def workers(self, kind: str) -> list[psutil.Process]:
        """Processes of actors of this class, the oldest first."""
        found = []
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and f"ray::{kind}" in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())


@contextmanager
def ray_head(*, num_cpus: int = 4) -> Iterator[Head]:
    """`ray start --head --block` on free ports, with a folder of its own."""
    gcs, client, metrics, agent = _free_ports(4)
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "1",  # what the head says is waited for
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        with (Path(folder) / "head.log").open("w") as log:
            child = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--num-cpus={num_cpus}",
                 "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                 f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
                 f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}/t",
                 "--object-store-memory=268435456"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                _wait_for(Path(folder) / "head.log", child)
                address = {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "SOLON_ALLOW_OPEN_CLUSTER": "1"}
                yield Head(psutil.Process(child.pid), environment | address)
            finally:
                _end(child)


def _wait_for(log: Path, child: subprocess.Popen[bytes]) -> None:
    """Until the head says that it stands: its port answers long before its node is there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text(errors="replace"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not start: {log.read_text(errors='replace')[-2000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=20)
    for process in [*family, *([psutil.Process(child.pid)] if child.poll() is None else [])]:
        with suppress(psutil.Error):
            process.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()
