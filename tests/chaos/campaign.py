"""Runs with faults on a seeded schedule until the planned number is reached; each is judged by its files at the end."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.cluster_of_our_own import Head
from tests.chaos.cut import cut_complaints
from tests.chaos.ends import Driver, last_events
from tests.chaos.faults import ENDS_CLUSTER, ENDS_DRIVER, FAULTS, Injector, away
from tests.chaos.verdict import downtimes, lines_of

LOSSY = 0.3
"""Share of drivers whose first calls to actors, or the answers, are lost."""
LOSSES = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": 4, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5
    }
}  # fmt: skip
AGAIN = 0.25
"""Share of driver faults after which the next driver is also hit, before its first step."""
AGAIN_WITHIN_S = (0.5, 9.0)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The kind of run under test: its command, the names of its workers, its verdict."""

    command: Callable[[Path, str], list[str]]
    """Module and arguments of a run below this folder, of this name; the same arguments resume it."""
    kinds: dict[str, str]
    """Beginning of the actor class by role: rollout, judge, learner."""
    complaints: Callable[[Path], list[str]]
    patience_s: float
    """A run without a new step for this long has failed its test."""
    between_s: tuple[float, float]
    """Shortest and longest pause between two faults."""
    faults: Mapping[str, int] = field(default_factory=lambda: FAULTS)
    is_lossy: bool = False
    """Whether calls are sometimes lost."""
    names_command: bool = False
    """Whether a run that ends names the command that resumes it, as a run of the command line does."""


@dataclass
class Result:
    """The results of a campaign."""

    injected: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    down_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds away, by kind of process."""
    runs: int = 0
    lossy: int = 0
    """Drivers whose first calls were lost."""
    ends: Counter[str] = field(default_factory=Counter)
    """Beginnings of the causes with which resumed runs had ended."""
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
        self._injector = Injector(head, subject.kinds, self._rng)
        self._driver: Driver | None = None
        self._has_nodes = "remove node" in subject.faults

    def run(self, *, faults: int, each: int) -> Result:
        """Runs with about `each` faults until the total is reached."""
        while (left := faults - self.result.injected.total()) > 0 and not self.result.complaints:
            self.one_run(f"run-{self.result.runs}", faults=min(each, left))
        return self.result

    def one_run(self, name: str, *, faults: int, seconds: float | None = None) -> None:
        """One run from its start to its end, with this many faults; or for this long, and then it is stopped."""
        if self._has_nodes and not self._head.node():
            self._head.add_node()
        end_at = None if seconds is None else time.monotonic() + seconds
        directory = self._root / name
        driver = self._start(name)
        moved, steps, left = time.monotonic(), 0, faults
        down_since: float | None = None
        again: float | None = None
        due = time.monotonic() + self._pause()
        try:
            while True:
                time.sleep(0.05)
                now, found = time.monotonic(), _count_lines(directory / "metrics.jsonl")
                if end_at is not None and now >= end_at and down_since is None and driver.poll() is None:
                    driver.process.terminate()
                    driver.process.wait(timeout=self._subject.patience_s)
                    break
                if found != steps:
                    moved, steps = now, found
                    if down_since is not None:
                        self.result.down_s.setdefault("driver", []).append(now - down_since)
                        down_since = None
                if driver.poll() is not None:
                    if self._is_over(driver, directory):
                        break
                    self._repair(driver, directory)
                    steps = _count_lines(directory / "metrics.jsonl")  # a restored directory is no progress
                    driver, down_since = self._start(name), down_since or now
                    moved = time.monotonic()
                    again = moved + self._rng.uniform(*AGAIN_WITHIN_S) if self._rng.random() < AGAIN else None
                if now - moved > self._subject.patience_s:
                    place = directory if directory.exists() else away(directory)
                    told = f"{last_events(place)} {driver.said()[-1500:]}"
                    faults = ", ".join(driver.faults)
                    self.result.complaints.append(f"{name}: no step for {now - moved:.0f} s after {faults}: {told}")
                    break
                if left > 0 and now >= due and steps and down_since is None and not driver.is_doomed:
                    left -= self._inject(self._draw(), driver, directory)
                    due = time.monotonic() + self._pause()
                if down_since is not None and left > 0 and again is not None and now >= again:
                    # While it starts or resumes: no part of that may be half done.
                    again = None
                    left -= self._inject(self._rng.choice(["kill driver", "end driver"]), driver, directory)
                self._sample(driver)
        finally:
            driver.end()
            self._injector.close()
        self.result.runs += 1
        if not self.result.complaints:
            self._judge(name, directory)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> Driver:
        lossy = {}
        if self._subject.is_lossy and self._rng.random() < LOSSY:
            lossy["RAY_testing_rpc_failure"] = json.dumps(LOSSES)
            self.result.lossy += 1
        return Driver.start(
            [sys.executable, "-m", *self._subject.command(self._root, name)], log=self._root / f"{name}.log",
            environment={**self._head.environment, **lossy, "SOLON_RUNS": str(self._root)},
        )  # fmt: skip

    def _draw(self) -> str:
        return self._rng.choices(list(self._subject.faults), list(self._subject.faults.values()))[0]

    def _pause(self) -> float:
        return self._rng.uniform(*self._subject.between_s)

    def _inject(self, fault: str, driver: Driver, directory: Path) -> bool:
        if not self._injector.inject(fault, driver.process, directory):
            return False
        self.result.injected[fault] += 1
        driver.faults.append(fault)
        if fault in ENDS_DRIVER:
            with suppress(subprocess.TimeoutExpired):
                driver.process.wait(timeout=self._subject.patience_s)
        return True

    def _is_over(self, driver: Driver, directory: Path) -> bool:
        """Whether the run is complete, or ended in a forbidden way."""
        place = directory if directory.exists() else away(directory)
        if driver.summary(directory, place).get("status") == "completed":
            return True
        complaints, cause = driver.complaints(directory, place, names_command=self._subject.names_command)
        if cause:
            self.result.ends[cause] += 1
        self.result.complaints += [f"{directory.name}: {complaint}" for complaint in complaints]
        return bool(complaints)

    def _repair(self, driver: Driver, directory: Path) -> None:
        """The repairs that an operator makes before the run is resumed."""
        if away(directory).exists():
            shutil.rmtree(directory, ignore_errors=True)  # files that a run may have written at the old place
            away(directory).rename(directory)
        if ENDS_CLUSTER.intersection(driver.faults) and not self._head.is_whole():
            self._head.restart()
        if "cut file" in driver.faults:
            found = cut_complaints(directory, self._rng)
            self.result.complaints += [f"{directory.name}: {complaint}" for complaint in found]

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

    def _sample(self, driver: Driver) -> None:
        now = time.monotonic() - self._began
        if self.result.samples and now - self.result.samples[-1][0] < 10:
            return
        with suppress(psutil.Error):
            process = psutil.Process(driver.process.pid)
            sample = process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()
            self.result.samples.append((now, *sample))


def _count_lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0
