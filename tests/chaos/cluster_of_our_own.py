"""A Ray head that drivers join and leave, and a second node that comes and goes: started and ended by process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
WORKER_PORTS = ("--min-worker-port=0", "--max-worker-port=0")
"""Free ones: two nodes on one machine would fight over a range."""
START_TIMEOUT_S = 120
"""On a busy machine."""
STORE_MIB = 256
"""Of the head's object store."""
ESSENTIAL = ("raylet/raylet ", "gcs_server")
"""Parts of the command lines of the processes without which no driver runs."""
FAILURES = "SOLON_CHAOS_FAILURES"
"""Environment variable: the folder in which workers check whether they must fail."""


QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "15000",
    "RAY_health_check_failure_threshold": "3",
}
"""A lost node is detected within seconds: it refuses connections. A slow one has time to answer."""


class Head:
    """`ray start --head --block` on free ports, with its own folder, and the environment in which a driver finds it."""

    def __init__(self, folder: Path, *, num_cpus: int) -> None:
        self.folder = folder
        self._num_cpus = num_cpus
        self._node: subprocess.Popen[bytes] | None = None
        self._joining: threading.Thread | None = None
        self._starts = 0
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "1",  # the head's output is waited for
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "SOLON_ALLOW_OPEN_CLUSTER": "1",
            FAILURES: str(folder / "failures"),
            **QUICK_TO_NOTICE,
        }
        (folder / "failures").mkdir()
        self._start()

    def restart(self) -> None:
        """A new cluster in place of one that lost a needed process."""
        self.close()
        self._start()

    def is_whole(self) -> bool:
        """Whether the processes that every driver needs exist."""
        return all(self.processes((part,)) for part in ESSENTIAL)

    def processes(self, parts: Sequence[str]) -> list[psutil.Process]:
        """Processes of the head node whose command line has one of these parts."""
        found = []
        for process in family_of(self._process):
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and any(part in line for part in parts):
                    found.append(process)
        return found

    def workers(self, kind: str) -> list[psutil.Process]:
        """Processes of actors of this class on any node, the oldest first."""
        found = []
        for process in [p for node in (self._process, *self._node_processes()) for p in family_of(node)]:
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and f"ray::{kind}" in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def tell_to_raise(self, role: str) -> None:
        """The next call of a worker of this role fails internally: see `tests.chaos.failing`."""
        (self.folder / "failures" / role).touch()

    def node(self) -> list[psutil.Process]:
        """All processes of the second node; empty while there is none."""
        return [p for node in self._node_processes() for p in (node, *family_of(node))]

    def add_node(self, *, num_cpus: int = 4) -> None:
        """Another node joins, after its predecessor is gone for good."""
        self.remove_node()
        (agent, metrics), log = _free_ports(2), self.folder / f"node-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            child = self._node = subprocess.Popen(
                [RAY, "start", "--block", f"--address={self.environment['RAY_ADDRESS']}", f"--num-cpus={num_cpus}",
                 "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}", *WORKER_PORTS,
                 f"--metrics-export-port={metrics}", "--object-store-memory=134217728"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        _wait_for(log, child)

    def add_node_soon(self) -> None:
        """The same, without waiting; removing a node before it has joined is no error."""
        if self._joining is not None and self._joining.is_alive():
            return

        def join() -> None:
            with suppress(RuntimeError):
                self.add_node()

        self._joining = threading.Thread(target=join, daemon=True)
        self._joining.start()

    def remove_node(self) -> None:
        """The second node fails as a machine does: all its processes at once."""
        for process in self.node():
            with suppress(psutil.Error):
                process.kill()
        if self._node is not None:
            self._node.wait(timeout=30)
            self._node = None

    def close(self) -> None:
        """End the nodes."""
        if self._joining is not None:
            self._joining.join(timeout=START_TIMEOUT_S)
        self.remove_node()
        _end(self._child)

    def _start(self) -> None:
        self._starts += 1
        gcs, client, metrics, agent = _free_ports(4)
        self.environment.pop("RAY_ADDRESS", None)
        log = self.folder / f"head-{self._starts}.log"
        with log.open("w") as file:
            self._child = subprocess.Popen(
                [RAY, "start", "--head", "--block", f"--num-cpus={self._num_cpus}",
                 "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                 f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
                 f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.folder}/t{self._starts}",
                 *WORKER_PORTS, f"--object-store-memory={STORE_MIB << 20}"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._process = psutil.Process(self._child.pid)
        try:
            _wait_for(log, self._child)
        except RuntimeError:
            _end(self._child)
            raise
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"

    def _node_processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [psutil.Process(self._node.pid)] if self._node is not None and self._node.poll() is None else []
        return []


def family_of(process: psutil.Process) -> list[psutil.Process]:
    """The descendants of a process."""
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


@contextmanager
def ray_head(*, num_cpus: int = 4) -> Iterator[Head]:
    """A head that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder), num_cpus=num_cpus)
        try:
            yield head
        finally:
            head.close()


def _wait_for(log: Path, child: subprocess.Popen[bytes]) -> None:
    """Until the head reports that it is up: its port answers long before its node exists."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text(errors="replace"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the Ray node did not start: {log.read_text(errors='replace')[-2000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    family = family_of(psutil.Process(child.pid)) if child.poll() is None else []
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
