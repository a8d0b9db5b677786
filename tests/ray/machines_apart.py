"""Machines of one host that can be lost, or cut off from each other, as real ones: each is a network namespace with an
address of its own, and a node of a Ray cluster.

    with machines() as apart:
        far = apart.add("learner", num_cpus=1)
        start([*apart.inside, *command], ..., **apart.joining)      # a driver on the head's machine
        far.cut()                                                    # its packets are lost
        far.heal()
        far.kill()                                                   # all of its processes

A test is skipped where namespaces cannot be made.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cluster_of_our_own import RAY, ROOT, _wait_for

PORT = 6379
"""Every machine has all ports for itself."""
STARTS = 3
NET = "10.77.0"
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""A machine that does not answer is lost after some 12 seconds."""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _why_not() -> str:
    """Why no namespace with a bridge can be made here; empty: it can."""
    name = f"so{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "bridge", "type", "bridge")
            _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
        finally:
            _ip("netns", "del", name)
    except OSError as error:
        return str(error)
    return ""


class Machine:
    """A namespace, and the node of Ray in it."""

    def __init__(self, space: str, address: str, link: tuple[str, str] | None) -> None:
        """link: the namespace and the name of the bridge's end of its cable."""
        self.space, self.address, self._link = space, address, link
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def inside(self) -> list[str]:
        """Put in front of a command, it runs on this machine."""
        return ["ip", "netns", "exec", self.space]

    def join(self, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        """Returns when its node has joined. On a busy machine Ray gives up after 30 seconds: it is started again, at
        most twice."""
        for attempt in range(STARTS):
            with log.open("w") as file:
                self._child = subprocess.Popen(
                    [*self.inside, RAY, "start", "--block", f"--node-ip-address={self.address}", *arguments],
                    env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            try:
                _wait_for(log, self._child)
            except RuntimeError:
                self.kill()
                if attempt == STARTS - 1:
                    raise
            else:
                return

    def cut(self) -> None:
        """From now on no packet leaves or reaches it. Its processes do not notice."""
        assert self._link is not None
        _ip("-n", self._link[0], "link", "set", self._link[1], "down")

    def heal(self) -> None:
        assert self._link is not None
        _ip("-n", self._link[0], "link", "set", self._link[1], "up")

    def pids(self, part: str = "") -> set[int]:
        """Its processes with this in the command line."""
        found = set()
        for pid in map(int, _ip("netns", "pids", self.space).split()):
            with suppress(OSError):
                if part in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"):
                    found.add(pid)
        return found

    def kill(self) -> None:
        """The machine is gone: all of its processes at once."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._child is not None:
            self._child.wait(timeout=30)

    def remove(self) -> None:
        self.kill()
        _ip("netns", "del", self.space)


class Machines:
    """A head, and machines that are connected to it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._prefix = folder, f"so{secrets.token_hex(3)}"
        self._all: list[Machine] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",  # the output of `ray start` is waited for
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            **QUICK_TO_NOTICE,
        }
        self.address = f"{NET}.1:{PORT}"

    def begin(self, **head: Any) -> None:
        """Start the head."""
        self.head = self._made(None)
        own = ("--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self._folder}/t")
        self._start(self.head, *own, **head)

    @property
    def inside(self) -> list[str]:
        """Put in front of a command, it runs on the head's machine."""
        return self.head.inside

    @property
    def joining(self) -> dict[str, str]:
        """The environment in which a driver joins."""
        return {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": self.address,
            "SOLON_ALLOW_OPEN_CLUSTER": "1",
        }

    def add(self, pool: str, **resources: Any) -> Machine:
        """A machine that has joined, with the label `solon.io/pool`."""
        machine = self._made(self.head)
        self._start(machine, f"--address={self.address}", f"--labels=solon.io/pool={pool}", **resources)
        return machine

    def close(self) -> None:
        for machine in reversed(self._all):
            machine.remove()

    def _made(self, head: Machine | None) -> Machine:
        number = len(self._all) + 1
        space, address = f"{self._prefix}-{number}", f"{NET}.{number}"
        _ip("netns", "add", space)
        machine = Machine(space, address, None if head is None else (head.space, f"to{number}"))
        self._all.append(machine)
        _ip("-n", space, "link", "set", "lo", "up")
        if head is None:
            _ip("-n", space, "link", "add", "eth0", "type", "bridge")
        else:
            _ip("-n", head.space, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", head.space, "link", "set", f"to{number}", "master", "eth0", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "route", "add", "default", "dev", "eth0")
        return machine

    def _start(self, machine: Machine, *arguments: str, num_cpus: int = 1, store_mib: int = 80) -> None:
        machine.join(
            self._folder / f"{machine.space}.log", self.environment, *arguments, f"--num-cpus={num_cpus}",
            f"--object-store-memory={store_mib << 20}",
        )  # fmt: skip


@contextmanager
def machines(**head: Any) -> Iterator[Machines]:
    """A head; all of its machines end with the block. head: num_cpus, store_mib."""
    if reason := _why_not():
        pytest.skip(f"network namespaces cannot be made: {reason}")
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Machines(Path(folder))
        try:
            made.begin(**head)
            yield made
        finally:
            made.close()
