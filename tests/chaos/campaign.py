"""Runs that are hurt on a seeded schedule until so many faults were injected, each judged by its files at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.cluster_of_our_own import ROOT, STORE_MIB, Head
from tests.chaos.verdict import downtimes, lines_of

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
    "kill driver": 7,
    "end driver": 3,
    "remove node": 5,
    "fill disk": 3,
    "fill store": 4,
}
"""Faults and how often each is drawn. stop: SIGSTOP for good; pause: for a second; end: SIGTERM. rollouts, everyone:
all engines, all workers, at the same moment. remove node: the second node goes, another one joins later. fill disk: the
driver can write no further. fill store: somebody else puts half as much again as the object store holds into it."""
LOSSY = 0.3
"""Share of drivers whose first calls to actors are lost, or their answers are."""
LOSSES = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": 4, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5
    }
}  # fmt: skip
MAY_END_IT = {"fill disk", "remove node"}
"""Faults after which a run may end with one cause, if it can be gone on with."""
CAUSES = {"DiskFullError", "RunFailedError", "PayloadLostError", "WorkerLostError"}
PAUSE_S = 1.0
LAST_BYTES = 100
"""What a full disk still takes of every file."""
SUMMARY_BYTES = 8192
"""No file is limited to less: a run keeps that much of a disk free for its summary."""
NODE_AWAY_S = 3.0
AGAIN = 0.25
"""Share of driver faults after which the next driver is hurt as well, before its first step."""
AGAIN_WITHIN_S = (0.5, 9.0)
HOARD = ("tests.chaos.hoard", "--mib", str(STORE_MIB * 3 // 2), "--seconds", "4")
WORKERS_OF_A_KIND = 2
"""More processes than that are on their way out: of a lost worker, or of a driver that is gone."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is hurt: how a run is started, what its workers are called, how it is judged."""

    command: Callable[[Path, str], list[str]]
    """Module and arguments of a run below this folder, of this name; the same ones go on with it."""
    kinds: dict[str, str]
    """Beginning of the actor class by role: rollout, judge, learner."""
    complaints: Callable[[Path], list[str]]
    patience_s: float
    """A run that shows no new step for so long has failed its test."""
    between_s: tuple[float, float]
    """Shortest and longest pause between two faults."""
    faults: Mapping[str, int] = field(default_factory=lambda: FAULTS)
    is_lossy: bool = False
    """Whether calls are lost now and then."""


@dataclass
class Result:
    """What a campaign found."""

    injected: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    down_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds away, by kind of process."""
    runs: int = 0
    lossy: int = 0
    """Drivers whose first calls were lost."""
    ends: Counter[str] = field(default_factory=Counter)
    """Beginnings of the causes with which runs ended that were gone on with."""
    summaries: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[float, float, float, float]] = field(default_factory=list)
    """(seconds, RSS in MiB, open files, threads) of the driver."""


class Campaign:
    """`Campaign(head, root, subject, seed=0).run(faults=200)`"""

    def __init__(self, head: Head, root: Path, subject: Subject, *, seed: int, say: Callable[[str], None]) -> None:
        self._head = head
        self._root = root
        self._subject = subject
        self._rng = random.Random(seed)
        self._say = say
        self.result = Result()
        self._began = time.monotonic()
        self._excused = False
        """The driver that runs now may end with a cause."""
        self._hoarder: subprocess.Popen[bytes] | None = None
        self._has_nodes = "remove node" in subject.faults

    def run(self, *, faults: int, each: int) -> Result:
        """Runs with about `each` faults until there were so many in all."""
        while (left := faults - self.result.injected.total()) > 0 and not self.result.complaints:
            self.one_run(f"run-{self.result.runs}", faults=min(each, left))
        return self.result

    def one_run(self, name: str, *, faults: int, seconds: float | None = None) -> None:
        """One run from its start to its end, with so many faults on the way; or for so long, and then it is stopped."""
        if self._has_nodes and not self._head.node():
            self._head.add_node()
        end_at = None if seconds is None else time.monotonic() + seconds
        directory = self._root / name
        child = self._start(name)
        moved, steps, left = time.monotonic(), 0, faults
        away: float | None = None
        again: float | None = None
        due = time.monotonic() + self._pause()
        try:
            while True:
                time.sleep(0.05)
                now, found = time.monotonic(), _count_lines(directory / "metrics.jsonl")
                if end_at is not None and now >= end_at and away is None and child.poll() is None:
                    child.terminate()
                    child.wait(timeout=self._subject.patience_s)
                    break
                if found != steps:
                    moved, steps = now, found
                    if away is not None:
                        self.result.down_s.setdefault("driver", []).append(now - away)
                        away = None
                if child.poll() is not None:
                    if self._is_over(child, directory):
                        break
                    child, away = self._start(name), away or now
                    moved = now
                    again = now + self._rng.uniform(*AGAIN_WITHIN_S) if self._rng.random() < AGAIN else None
                if now - moved > self._subject.patience_s:
                    self.result.complaints.append(f"{name}: no step for {now - moved:.0f} s; {_standing(directory)}")
                    break
                if left > 0 and now >= due and steps and away is None:
                    fault = self._rng.choices(list(self._subject.faults), list(self._subject.faults.values()))[0]
                    if self._inject(fault, child, directory):
                        left -= 1
                        if fault.endswith("driver"):
                            child.wait(timeout=self._subject.patience_s)
                    due = now + self._pause()
                if away is not None and left > 0 and again is not None and now >= again:
                    # While it starts, or goes on from its checkpoint: nothing of that may be half done.
                    again = None
                    left -= self._inject(self._rng.choice(["kill driver", "end driver"]), child, directory)
                self._sample(child)
        finally:
            _end(child)
            if self._hoarder is not None:
                _end(self._hoarder)
        self.result.runs += 1
        if not self.result.complaints:
            self._judge(name, directory)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        self._excused = False
        lossy = {}
        if self._subject.is_lossy and self._rng.random() < LOSSY:
            lossy["RAY_testing_rpc_failure"] = json.dumps(LOSSES)
            self.result.lossy += 1
        with (self._root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self._subject.command(self._root, name)], cwd=ROOT,
                env={**self._head.environment, **lossy, "SOLON_RUNS": str(self._root)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _hoard(self) -> None:
        """One at a time; it goes by itself."""
        if self._hoarder is None or self._hoarder.poll() is not None:
            self._hoarder = subprocess.Popen(
                [sys.executable, "-m", *HOARD], cwd=ROOT, env=self._head.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def _pause(self) -> float:
        return self._rng.uniform(*self._subject.between_s)

    def _is_over(self, child: subprocess.Popen[bytes], directory: Path) -> bool:
        """Whether the run is complete, or ended in a way that nobody asked for."""
        summary: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            summary = json.loads((directory / "summary.json").read_text())
        if summary.get("status") == "completed":
            return True
        # SIGTERM interrupts a driver that has not begun to train, or ends it where it has not come as far as asking.
        if child.returncode in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return False
        log = _tail(self._root / directory.name)
        if child.returncode == 1 and log.endswith("interrupted before training began; nothing was lost\n"):
            return False
        cause = str(summary.get("failure", "")).partition(":")[0]
        if self._excused and child.returncode == 1 and cause in CAUSES:
            self.result.ends[cause] += 1
            return False
        self.result.complaints.append(
            f"{directory.name}: the driver ended with {child.returncode}: {log}; {_standing(directory)}"
        )
        return True

    def _inject(self, fault: str, child: subprocess.Popen[bytes], directory: Path) -> bool:
        how, _, whom = fault.partition(" ")
        victims = self._victims(whom, child)
        if not victims:
            if whom == "node":
                self._head.add_node_soon()
            return False
        # Before the fault, so that a run that dies of it has it on record.
        with (directory / "chaos.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), "fault": fault, "pids": [v.pid for v in victims]}) + "\n")
        if fault == "fill store":
            self._hoard()
        elif how == "fill":
            fullest = max(path.stat().st_size for path in directory.glob("*.jsonl"))
            most = max(fullest + LAST_BYTES, SUMMARY_BYTES)
            victims[0].rlimit(psutil.RLIMIT_FSIZE, (most, most))
        elif how == "remove":
            self._head.remove_node()
            threading.Timer(NODE_AWAY_S, self._head.add_node_soon).start()
        for victim in victims:
            with suppress(psutil.Error):  # gone by itself meanwhile, or with another one
                _hurt(victim, how)
        if how == "pause":
            threading.Timer(PAUSE_S, _resume, victims).start()
        self._excused |= fault in MAY_END_IT
        self.result.injected[fault] += 1
        return True

    def _victims(self, whom: str, child: subprocess.Popen[bytes]) -> list[psutil.Process]:
        match whom:
            case "driver" | "disk" | "store":
                return [psutil.Process(child.pid)]
            case "node":
                return self._head.node()
            case _:
                return self._workers(whom)

    def _workers(self, whom: str) -> list[psutil.Process]:
        """One worker of a kind, all engines, or all there are."""
        kinds = self._subject.kinds
        asked = {"rollouts": ["rollout"], "everyone": list(kinds)}.get(whom, [whom])
        found = [p for kind in asked for p in self._head.workers(kinds[kind])[-WORKERS_OF_A_KIND:]]
        return [self._rng.choice(found)] if found and whom in kinds else found

    def _judge(self, name: str, directory: Path) -> None:
        self.result.complaints += [f"{name}: {complaint}" for complaint in self._subject.complaints(directory)]
        events = lines_of(directory / "events.jsonl")
        for kind, seconds in downtimes(events).items():
            self.result.down_s.setdefault(kind, []).extend(seconds)
        summary = json.loads((directory / "summary.json").read_text())
        self.result.summaries.append(summary)
        verdict = "FAILED" if self.result.complaints else "adds up"
        self._say(
            f"{name}: {summary['steps']} steps, {summary['groups']['committed']} groups, faults so far "
            f"{self.result.injected.total()}, {verdict}"
        )

    def _sample(self, child: subprocess.Popen[bytes]) -> None:
        now = time.monotonic() - self._began
        if self.result.samples and now - self.result.samples[-1][0] < 10:
            return
        with suppress(psutil.Error):
            driver = psutil.Process(child.pid)
            self.result.samples.append((now, driver.memory_info().rss / 2**20, driver.num_fds(), driver.num_threads()))


def _hurt(victim: psutil.Process, how: str) -> None:
    match how:
        case "kill":
            victim.kill()
        case "end":
            victim.terminate()
        case "stop" | "pause":
            victim.suspend()


def _resume(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.resume()


def _count_lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0


def _standing(directory: Path) -> str:
    """The last thing that a run said of itself."""
    stalled = [event for event in lines_of(directory / "events.jsonl") if event["event"] != "published"][-3:]
    failure = ""
    with suppress(OSError, ValueError):
        failure = json.loads((directory / "summary.json").read_text()).get("failure", "")
    return f"{failure} {json.dumps(stalled)[:1500]}"


def _tail(stem: Path) -> str:
    with suppress(OSError):
        return stem.with_suffix(".log").read_text(errors="replace")[-1500:]
    return ""


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
