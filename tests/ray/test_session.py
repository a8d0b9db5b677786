"""The cluster of a run, from its start to its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.ray_session.processes import AGENTS
from solon.host.processes import Process, descendants, wait_for_the_end

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import os, signal, time
from cluster.ray_session.session import cluster
before = signal.getsignal(signal.SIGTERM)
try:
    with cluster(dashboard=False):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted, handler given back:", signal.getsignal(signal.SIGTERM) == before)
"""


def test_sigterm_before_training_interrupts_as_ctrl_c_does():
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted, handler given back: True\n", done.stderr[-2000:]


STARTING = """
from cluster.ray_session.session import cluster
import time
with cluster(dashboard=False):
    time.sleep(60)
"""


def test_a_driver_that_is_killed_while_ray_starts_leaves_no_process_of_it():
    driver = subprocess.Popen([sys.executable, "-c", STARTING], cwd=ROOT)
    seen: dict[int, Process] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen |= {one.pid: one for one in descendants([driver.pid])}
        if any(one.command.startswith(tuple(AGENTS)) for one in seen.values()):
            break
        time.sleep(0.02)
    else:
        pytest.fail("Ray's agents were never seen")
    driver.kill()
    assert driver.wait(20) == -signal.SIGKILL
    assert wait_for_the_end(seen.values(), timeout_s=20) == []
