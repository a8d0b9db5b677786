"""A killed driver leaves no process of the cluster that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from cluster.ray_session.orphans import end_sessions, ended_with_driver
from solon.host.processes import Process, wait_for_the_end

AGENT = "import time; time.sleep(60)"
RAYLET = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {AGENT!r}]).pid, flush=True)
time.sleep(60)
"""
DRIVER = f"""
import subprocess, sys, time
from cluster.ray_session.orphans import ended_with_driver
with ended_with_driver() as add:
    raylet = subprocess.Popen(
        [sys.executable, "-c", {RAYLET!r}], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    add(raylet.pid)
    print(raylet.pid, raylet.stdout.readline().strip(), flush=True)
    time.sleep({{seconds}})
"""


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "leaves the block"])
def test_what_a_driver_started_ends_with_it_and_so_do_the_children_of_that(is_killed: bool):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(seconds=60 if is_killed else 0)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    started = [found for pid in driver.stdout.readline().split() if (found := Process.find(int(pid))) is not None]
    assert len(started) == 2
    if is_killed:
        started[0].send(signal.SIGKILL)  # the raylet, which ends with its driver
        driver.kill()
    assert wait_for_the_end(started, timeout_s=20) == []
    assert driver.wait(20) == (-signal.SIGKILL if is_killed else 0)


def test_a_session_number_that_another_process_leads_by_now_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.ray_session.orphans.LOOK_S", 0.3)
    other = subprocess.Popen([sys.executable, "-c", AGENT], start_new_session=True)
    try:
        now = Process.find(other.pid)
        assert now is not None
        end_sessions({now.pid: now.born - 1})
        time.sleep(0.1)
        assert other.poll() is None
        end_sessions({now.pid: now.born})
        assert other.wait(5) == -signal.SIGKILL
    finally:
        other.kill()


def test_a_block_without_processes_ends_at_once():
    began = time.monotonic()
    with ended_with_driver():
        pass
    assert time.monotonic() - began < 20
