"""Which of Ray's processes on a machine belong to the node of a driver."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cluster.ray_session.processes import raylets_at
from solon.host.processes import Process


def test_the_raylet_of_another_node_on_the_machine_is_not_taken_for_the_drivers_own(tmp_path: Path):
    """Ray names the sockets of further nodes `raylet.1`, `raylet.2`: the driver ended when such a node was lost."""
    program = tmp_path / "raylet"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    sockets = [str(tmp_path / name) for name in ("raylet", "raylet.1")]
    children = [
        subprocess.Popen([program, f"--raylet_socket_name={socket}", "--more=1"], stdin=subprocess.PIPE)
        for socket in sockets
    ]
    try:
        assert [process.pid for process in raylets_at(sockets[0])] == [children[0].pid]
        assert [process.pid for process in raylets_at(sockets[1])] == [children[1].pid]
        assert raylets_at(str(tmp_path / "ray")) == []
        found = Process.find(children[0].pid)
        assert found is not None
        assert found.arguments[-2:] == [f"--raylet_socket_name={sockets[0]}", "--more=1"]
        assert found.command.endswith(f"--raylet_socket_name={sockets[0]} --more=1")
    finally:
        for child in children:
            child.communicate(b"\n")
