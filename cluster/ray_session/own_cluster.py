"""Starts Ray on this machine: on loopback only, on ports that no other Ray expects, with its own files.

Ray's defaults assume the only cluster of a machine: its metrics answer on all addresses without a token, and a second
cluster that finds the agent's usual port taken starts, but accepts no jobs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.parameter
import ray._private.services

from cluster.ray_session.session_folder import SessionFolder
from solon.errors import InputError, short

LOOPBACK = "127.0.0.1"
WELL_KNOWN = {
    6379: "the cluster's address",
    8265: "the dashboard",
    10001: "Ray's client",
    44217: "the autoscaler's metrics",
    44227: "the dashboard's metrics",
    52365: "the dashboard agent",
}
"""Default ports of a Ray cluster. They are left to clusters that others start."""
DASHBOARD_PORT = "SOLON_DASHBOARD_PORT"
"""Environment variable: the dashboard's port, for a tunnel or a bookmark; otherwise any free one."""


def init_options(folder: SessionFolder, *, dashboard: bool) -> dict[str, Any]:
    """The arguments of `ray.init` within `private_start`. Raises InputError."""
    return {
        "address": "local",
        "include_dashboard": dashboard,
        "dashboard_host": LOOPBACK,
        "dashboard_port": _dashboard_port() if dashboard else None,
        "_temp_dir": str(folder.path),
    }


@contextmanager
def private_start(folder: SessionFolder, started: Callable[[int], None]) -> Iterator[None]:
    """Within it, `ray.init` starts processes on loopback and on free ports, in sessions of their own, with `folder` for
    temporary files. started: is told the id of each.

    `ray.init` has no options for this: it resolves 127.0.0.1 to the machine's address, and the agent's port is 52365.
    """
    monitor, head = free_ports(2)
    changes = {
        "AUTOSCALER_METRIC_PORT": str(monitor),
        "DASHBOARD_METRIC_PORT": str(head),
        "TMPDIR": str(folder.scratch),
    }
    before = {name: os.environ.get(name) for name in changes}
    parameter: Any = ray._private.parameter
    plain = parameter.RayParams

    def on_loopback(**given: Any) -> Any:
        return plain(**given | {"node_ip_address": LOOPBACK, "dashboard_agent_listen_port": 0})

    services: Any = ray._private.services
    popen = services.ConsolePopen

    class InItsOwnSession(popen):  # type: ignore[valid-type, misc]
        """A signal to the driver's process group, as from `timeout` or a service manager, is for the driver: without
        Ray it could not save a checkpoint."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"start_new_session": True})
            started(self.pid)

    parameter.RayParams = on_loopback
    services.ConsolePopen = InItsOwnSession
    os.environ.update(changes)
    try:
        yield
    finally:
        parameter.RayParams = plain
        services.ConsolePopen = popen
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_ports(count: int) -> list[int]:
    """Free ports on loopback, none of them well known."""
    sockets: list[socket.socket] = []
    found: list[int] = []
    try:
        while len(found) < count:
            sockets.append(socket.socket())
            sockets[-1].bind((LOOPBACK, 0))
            port = sockets[-1].getsockname()[1]
            found += [port] if port not in WELL_KNOWN else []
    finally:
        for item in sockets:
            item.close()
    return found


def _dashboard_port() -> int:
    asked = os.environ.get(DASHBOARD_PORT, "")
    if not asked:
        return free_ports(1)[0]
    if not (asked.isascii() and asked.isdecimal() and 0 < int(asked) < 65536):
        raise InputError(f"{DASHBOARD_PORT} is {short(asked)}, expected a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, int(asked)))
        except OSError as error:
            raise InputError(
                f"{DASHBOARD_PORT} is {asked}, which cannot be used: {error.strerror}; choose another port, or unset it"
            ) from None
    return int(asked)
