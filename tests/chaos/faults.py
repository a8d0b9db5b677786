"""The faults of the harness, and their victims."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.cluster_of_our_own import ROOT, STORE_MIB, Head

FAULTS = {
    "kill rollout": 30,
    "kill judge": 24,
    "kill learner": 18,
    "stop rollout": 4,
    "stop judge": 3,
    "stop learner": 3,
    "pause learner": 4,
    "pause rollout": 4,
    "kill audit": 4,
    "kill rollouts": 4,
    "kill everyone": 4,
    "raise rollout": 5,
    "raise judge": 5,
    "raise learner": 4,
    "kill driver": 7,
    "end driver": 3,
    "hang-up driver": 3,
    "pause driver": 4,
    "kill raylet": 2,
    "kill gcs": 2,
    "kill agent": 2,
    "kill helper": 3,
    "remove node": 5,
    "fill disk": 3,
    "fill store": 4,
    "remove folder": 3,
    "cut file": 4,
}
"""Faults and their frequencies.

- kill: SIGKILL; end: SIGTERM; hang-up: SIGHUP; stop: SIGSTOP for good; pause: SIGSTOP for a while.
- raise: the next call of the engine or learner fails with an error of its library.
- rollouts, everyone: all engines, all workers, at the same moment.
- raylet, gcs, agent: processes of Ray's head node that every driver needs; helper: one that a run on its own cluster
  does not need, although `ray start --block`, which the harness joins, ends all others with it.
- remove node: the second node goes, another one joins later. remove folder: the run directory is moved away.
- fill disk: the driver cannot write any further. fill store: another program puts 1.5 times the capacity of the object
  store into it.
- cut file: the driver is killed; in a copy of its directory a file is cut to half, and must be named.
"""
RANK_FAULTS = {"kill learner": 6, "stop learner": 3, "raise learner": 3, "nan rank": 4, "change rank": 4}
"""Faults of a learner of several ranks, each of which has a process of its own: nan: the rank computes a loss that is
not finite, change: a weight that it keeps changes between two steps."""
ENDS_CLUSTER = {"kill raylet", "kill gcs", "kill agent", "kill helper"}
"""Faults after which the harness starts another cluster."""
MAY_END_IT = {"fill disk", "remove node", "remove folder", *ENDS_CLUSTER}
"""Faults after which a run may end with one cause, if it can be resumed."""
ENDS_DRIVER = {
    "kill driver", "end driver", "hang-up driver", "cut file", "fill disk", "remove folder",
    "kill raylet", "kill gcs",
}  # fmt: skip
"""Faults after which the driver has to end."""
RAY_PROCESSES: Mapping[str, tuple[str, ...]] = {
    "raylet": ("raylet/raylet ",),
    "gcs": ("gcs_server",),
    "agent": ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py"),
    "helper": ("log_monitor.py", "monitor.py", "dashboard/dashboard.py"),
}
"""Parts of the command line of Ray's own processes."""
PAUSE_S = 1.0
DRIVER_PAUSE_S = 6.0
"""Longer than a worker may take to answer."""
LAST_BYTES = 100
"""Bytes that a full disk still accepts for every file."""
SUMMARY_BYTES = 8192
"""The smallest limit of a file: a run keeps that much of a disk free for its summary."""
NODE_AWAY_S = 3.0
HOARD = ("tests.chaos.hoard", "--mib", str(STORE_MIB * 3 // 2), "--seconds", "4")
WORKERS_OF_A_KIND = 2
"""More processes than this are still exiting: of a lost worker, or of a driver that is gone."""


class Injector:
    """`injector.inject("kill rollout", driver, directory)`; False: there was no victim."""

    def __init__(self, head: Head, kinds: Mapping[str, str], rng: random.Random) -> None:
        self._head = head
        self._kinds = kinds
        self._rng = rng
        self._hoarder: subprocess.Popen[bytes] | None = None

    def inject(self, fault: str, driver: subprocess.Popen[bytes], directory: Path) -> bool:
        """Inject it, after recording it in `chaos.jsonl`, as the run may die of it."""
        how, _, whom = fault.partition(" ")
        victims = self._victims(whom, driver)
        if not victims:
            if whom == "node":
                self._head.add_node_soon()
            return False
        with (directory / "chaos.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), "fault": fault, "pids": [v.pid for v in victims]}) + "\n")
        match fault:
            case "fill store":
                self._hoard()
            case "fill disk":
                fullest = max(path.stat().st_size for path in directory.glob("*.jsonl"))
                most = max(fullest + LAST_BYTES, SUMMARY_BYTES)
                # The soft limit: a hard one could not be raised by the next fault of this kind.
                victims[0].rlimit(psutil.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            case "remove node":
                self._head.remove_node()
                threading.Timer(NODE_AWAY_S, self._head.add_node_soon).start()
            case "remove folder":
                directory.rename(away(directory))
            case "cut file":
                victims[0].kill()
            case _ if whom == "rank":
                self._head.tell_to_raise(f"rank-{how}")
            case _ if how == "raise":
                self._head.tell_to_raise(whom)
            case _:
                self._signal(victims, how, whom)
        return True

    def close(self) -> None:
        """End the program that fills the object store."""
        if self._hoarder is not None:
            end(self._hoarder)

    def _signal(self, victims: list[psutil.Process], how: str, whom: str) -> None:
        for victim in victims:
            with suppress(psutil.Error):  # it ended meanwhile, by itself or with another one
                hurt(victim, how)
        if how == "pause":
            threading.Timer(DRIVER_PAUSE_S if whom == "driver" else PAUSE_S, _resume, [victims]).start()

    def _victims(self, whom: str, driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
        match whom:
            case "driver" | "disk" | "store" | "folder" | "file":
                return [psutil.Process(driver.pid)]
            case "node":
                return self._head.node()
            case "rank":
                return self._workers("learner")
            case _ if whom in RAY_PROCESSES:
                found = self._head.processes(RAY_PROCESSES[whom])
                return [self._rng.choice(found)] if found else []
            case _:
                return self._workers(whom)

    def _workers(self, whom: str) -> list[psutil.Process]:
        """One worker of a kind, all engines, or all workers."""
        asked = {"rollouts": ["rollout"], "everyone": list(self._kinds)}.get(whom, [whom])
        found = [p for kind in asked for p in self._head.workers(self._kinds[kind])[-WORKERS_OF_A_KIND:]]
        return [self._rng.choice(found)] if found and whom in self._kinds else found

    def _hoard(self) -> None:
        """One at a time; it ends by itself."""
        if self._hoarder is None or self._hoarder.poll() is not None:
            self._hoarder = subprocess.Popen(
                [sys.executable, "-m", *HOARD], cwd=ROOT, env=self._head.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip


def away(directory: Path) -> Path:
    """Where a run directory is while it is away."""
    return directory.with_name(f"{directory.name}.away")


def hurt(victim: psutil.Process, how: str) -> None:
    """Send the signal of a fault."""
    match how:
        case "kill":
            victim.kill()
        case "end":
            victim.terminate()
        case "hang-up":
            victim.send_signal(signal.SIGHUP)
        case "stop" | "pause":
            victim.suspend()


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process that the harness started, and wait for it."""
    if child.poll() is None:
        child.kill()
        child.wait(timeout=30)


def _resume(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.resume()
