"""Ends what a killed driver leaves of the cluster that it started.

Ray's raylet and control service end with their driver, however it ended. The raylet's agents notice this only once they
have found the control service, and look for it for more than a minute (Ray 2.60). So a process of its own reads a
pipe from the driver, which names the sessions of Ray's processes. When the pipe closes, it ends what is left in them.

    with ended_with_driver() as add:
        add(process.pid)      # started in a session of its own
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from solon.host.own_code import child_environment, module_command
from solon.host.processes import Process, all_processes

GRACE_S = 0.5
"""For processes that end by themselves when the cluster does."""
LOOK_S = 5.0
"""How long new processes of a session are looked for: a raylet may start one while it ends."""
EVERY_S = 0.1


@contextmanager
def ended_with_driver() -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the id of a process that leads a session. What is left in these sessions after the
    block, or after the death of this process within it, is killed."""
    ender = subprocess.Popen(
        module_command("cluster.ray_session.orphans"),
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert ender.stdin is not None
    pipe = ender.stdin

    def add(leader: int) -> None:
        if (found := Process.find(leader)) is not None:
            pipe.write(f"{found.pid} {found.born}\n".encode())
            pipe.flush()

    try:
        yield add
    finally:
        with suppress(BrokenPipeError):
            pipe.close()
        ender.wait()


def end_sessions(ours: Mapping[int, int]) -> None:
    """Kill all processes in the sessions of these leaders. ours: when each was born, by its number. A number that
    another process leads by now is left alone; without a leader it is not given away while a process of the session is
    there."""
    time.sleep(GRACE_S)
    deadline = time.monotonic() + LOOK_S
    while (left := [one for one in all_processes() if _session(one.pid) in ours]) and time.monotonic() < deadline:
        born = {one.pid: one.born for one in left}
        for one in left:
            session = _session(one.pid)
            if born.get(session, ours.get(session)) == ours.get(session):
                one.send(signal.SIGKILL)
        time.sleep(EVERY_S)


def _session(pid: int) -> int:
    """0: the process has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def main() -> None:
    """Read session leaders and when they were born, a line each, until the pipe closes; then end their sessions."""
    rows = [line.split() for line in sys.stdin.buffer]
    end_sessions({int(number): int(born) for number, born in rows})


if __name__ == "__main__":
    main()
