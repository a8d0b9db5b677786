"""A run as a user starts it, and what it did: throughput, binding stage, staleness, memory of each role."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.host.processes import PROC, descendants

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"Rollout": "rollout", "Judge": "judge", "Learner": "learner"}
"""Beginnings of the titles that Ray gives to the actors' processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run."""

    groups_per_s: float
    binding: str
    staleness: float
    """Mean over all groups trained."""
    busy: dict[str, float]
    memory: dict[str, int]
    """Peak resident bytes by role."""
    shared: dict[str, int]
    """The most of them that were seen mapped from shared memory, which is Ray's object store."""
    tokens_per_group: float


def run_for_real(file: Path, overrides: Sequence[str], *, folder: Path, name: str) -> Measured:
    """Runs `solon train`; raises RuntimeError with the end of its log when it fails."""
    changes = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "solon", "train", str(file), "--name", name, *changes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOLON_RUNS": str(folder)}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        peaks = Peaks(process.pid)
        code = process.wait()
        peaks.end()
    if code:
        raise RuntimeError((folder / f"{name}.log").read_text()[-3000:])
    summary = json.loads((folder / name / "summary.json").read_text())
    lines = [json.loads(row) for row in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return of_files(summary, lines, peaks.memory, peaks.shared)


def of_files(
    summary: dict[str, Any], lines: Sequence[dict[str, Any]], memory: dict[str, int], shared: dict[str, int]
) -> Measured:
    """From the files of a run."""
    wall_s = summary["wall_s"]
    committed = sum(len(row["batch/ordinals"]) for row in lines)
    return Measured(
        groups_per_s=committed / wall_s,
        binding=summary["overlap"]["binding_stage"],
        staleness=statistics.fmean(row["batch/staleness/mean"] for row in lines),
        busy=dict(summary["overlap"]["busy"]),
        memory=memory,
        shared=shared,
        tokens_per_group=summary["throughput"]["tokens_per_s"] * wall_s / max(1, summary["groups"]["admitted"]),
    )


class Peaks:
    """Reads the peaks of all actors below a process until told to end."""

    def __init__(self, root: int) -> None:
        self.memory: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self._root, self._over = root, threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(1.0):
            for process in descendants([self._root]):
                title = process.command
                role = next((role for begin, role in TITLES.items() if title.startswith(f"ray::{begin}")), "")
                if role:
                    with suppress(OSError, KeyError):
                        found = _kib(PROC / str(process.pid) / "status")
                        for most, key in ((self.memory, "VmHWM"), (self.shared, "RssShmem")):
                            most[role] = max(most.get(role, 0), found[key] * 1024)


def _kib(status: Path) -> dict[str, int]:
    """The amounts of memory in a process's `status`."""
    rows = (row.split() for row in status.read_text(encoding="ascii", errors="replace").splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}
