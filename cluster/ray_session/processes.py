"""Ray's own processes on this machine, and how one ended: those that a run needs, and helpers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import Popen

import ray

from solon.host.processes import Process, all_processes, descendants, how_it_ended

AGENTS = {
    "ray::DashboardAgent": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's runtime environment agent",
}
"""By process title. The raylet ends with any of them; no setting of Ray 2.60 changes that."""
STARTED = {
    "raylet": ("Ray's raylet", True),
    "gcs_server": ("Ray's control service (GCS)", True),
    "dashboard": ("Ray's dashboard", False),
    "log_monitor": ("Ray's log monitor", False),
    "monitor": ("Ray's autoscaler", False),
}
"""By Ray's name of the process: its description, and whether a run needs it."""


@dataclass(frozen=True)
class RayProcess:
    """One of Ray's processes."""

    what: str
    is_needed: bool
    process: Process
    child: Popen[bytes] | None = None
    """A process that this one started."""

    def ended(self) -> str | None:
        """How it ended, or None while it runs."""
        # Before the exit status: a process that ends between the two would have ended without a cause.
        is_there = self.process.is_there
        # Also 0 when other code in this process, such as Ray's own, collected its exit status.
        if self.child is not None and (code := self.child.poll()) is not None:
            return how_it_ended(code) if code else "ended"
        return None if is_there else "ended"


def ray_processes() -> list[RayProcess]:
    """The processes of the node that this process is connected to, agents first: when the raylet ended because of an
    agent, the agent is the cause. Empty for a node in another container, whose processes are not visible."""
    node = ray._private.worker._global_node
    if node is None:
        return []
    started = [
        RayProcess(*STARTED[name], process, info.process)
        for name, infos in node.all_processes.items()
        if name in STARTED
        for info in infos
        if (process := Process.find(info.process.pid)) is not None
    ]
    raylets = [one.process for one in started if one.what == STARTED["raylet"][0]]
    if not raylets:  # a cluster that was joined
        raylets = raylets_at(str(node.raylet_socket_name))
        started += [RayProcess(*STARTED["raylet"], process) for process in raylets]
    return [*_agents_of(raylets), *started]


def raylets_at(socket: str) -> list[Process]:
    """The raylet that listens on this socket. Other nodes on the machine have longer names of it, with `.1` or `.2`."""
    own = f"--raylet_socket_name={socket}"
    return [process for process in all_processes() if process.name == "raylet" and own in process.arguments]


def _agents_of(raylets: Sequence[Process]) -> list[RayProcess]:
    children = descendants([raylet.pid for raylet in raylets], depth=1)
    return [
        RayProcess(what, True, child)
        for child in children
        for title, what in AGENTS.items()
        if child.command.startswith(title)
    ]
