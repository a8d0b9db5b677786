"""The runs of a directory, and their tables: opened when they are looked at, read again while they are."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from solon.doctor.diagnosis import diagnose
from solon.doctor.facts import look
from solon.errors import InputError, one_line
from solon.report.store import RunStore
from solon.report.values import clean, number

MOST_OPEN = 6
"""Runs whose tables are in memory."""
REFRESH_S = 2.0
LONG_RUN = 100
"""Parts of labels."""
FIRST_PAGE_S = 3.0
"""Longest time that the first page is waited for."""
MARKS = ("config.json", "summary.json", "metrics.jsonl")
"""A folder with one of them is a run."""


class OpenRun:
    """A run that is looked at. A thread reads what is new while the page asks for it."""

    def __init__(self, path: Path) -> None:
        self.store = RunStore(path)
        self.version = 0
        """Changes when the tables do."""
        self.failure = ""
        self._wanted_until = 0.0
        self._state: Any = None
        self._is_closed = threading.Event()
        self.store.refresh_small()
        self.may_load = threading.Event()
        """Reading labels would slow down the first page of a long run: it comes first."""
        if sum(1 for _ in (path / "labels").glob("part-*")) < LONG_RUN:
            self.may_load.set()
        self._thread = threading.Thread(target=self._work, name=f"solon-watch {path.name}", daemon=True)
        self.want()
        self._thread.start()

    def want(self) -> None:
        """A user looks at it: keep reading for a while."""
        self._wanted_until = time.monotonic() + 30

    @property
    def is_reading(self) -> bool:
        """Whether its thread works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Read no more. The tables are freed when the last request has let go of them."""
        self._is_closed.set()

    def join(self) -> None:
        """Wait until nothing is read any more: a process that ends while DuckDB works is aborted."""
        self._thread.join(timeout=30)

    def _work(self) -> None:
        self.may_load.wait(FIRST_PAGE_S)
        while not self._is_closed.is_set():
            if time.monotonic() < self._wanted_until or not self.store.loaded.is_set():
                try:
                    self._read()
                    self.failure = ""
                except Exception as error:  # shown on the page; the next try may succeed
                    self.failure = one_line(f"{type(error).__name__}: {error}")
            self._is_closed.wait(REFRESH_S)

    def _read(self) -> None:
        state = _state(self.store.path)
        if state != self._state or not self.store.loaded.is_set():
            self.store.refresh()
            self._state = state
            self.version += 1


def _state(path: Path) -> Any:
    """Size and time of change of the files that tables are made from."""
    names = [
        "summary.json",
        "live.json",
        "metrics.jsonl",
        "events.jsonl",
        "audits.jsonl",
        "groups.jsonl",
        "human-labels.jsonl",
    ]
    files = [path / name for name in (*names, "heldout-before.json", "heldout-after.json")]
    files += [path / "rollouts", path / "labels", *sorted((path / "rollouts").glob("part-*.parquet"))[-8:]]
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        found.append((file.name, stat.st_size, stat.st_mtime_ns))
    return found


class Runs:
    """`runs["name"]` opens a run. Safe to use from several threads. Raises InputError for a place without a run."""

    def __init__(self, place: Path) -> None:
        if not place.is_dir():
            raise InputError(
                f"there is no directory {place}, expected a run or a directory of runs; look with `ls runs`"
            )
        self.place = place
        self.is_single = is_run(place)
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}
        self._closed: list[OpenRun] = []
        """Those that still read."""
        self._lock = threading.Lock()
        if not self.is_single and not self.paths():
            raise InputError(
                f"{place} holds no run, expected directories with config.json or metrics.jsonl; start one with "
                "`solon demo`"
            )

    def paths(self) -> dict[str, Path]:
        """Directories of the runs by name, the youngest first."""
        if self.is_single:
            return {self.place.absolute().name: self.place}
        found = [path for path in self.place.iterdir() if is_run(path)]
        return {clean(path.name): path for path in sorted(found, key=_changed, reverse=True)}

    def get(self, name: str) -> OpenRun | None:
        """The run of this name; None: there is none."""
        path = self.paths().get(name)
        if path is None:
            return None
        with self._lock:
            own = self._opening.setdefault(name, threading.Lock())
        with own:  # a run that is slow to open holds up requests for itself alone
            with self._lock:
                found = self._open.get(name)
            if found is None:
                found = OpenRun(path)
                with self._lock:
                    self._open[name] = found
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
            for _ in range(len(self._open) - MOST_OPEN):
                self._closed.append(self._open.popitem(last=False)[1])
                self._closed[-1].close()
            self._closed = [run for run in self._closed if run.is_reading]
        found.want()
        return found

    def close(self) -> None:
        """Free all tables."""
        with self._lock:
            ending = [*self._closed, *self._open.values()]
            self._closed.clear()
            self._open.clear()
        for run in ending:
            run.close()
        for run in ending:
            run.join()

    def listed(self) -> list[dict[str, Any]]:
        """A row for every run: name, state, steps, scores."""
        return [_row(name, path) for name, path in self.paths().items()]


def is_run(path: Path) -> bool:
    """Whether a directory holds the files of a run."""
    try:
        return any((path / name).is_file() for name in MARKS)
    except OSError:  # a folder that may not be read
        return False


def _row(name: str, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "changed": _changed(path), "status": "not known", "headline": ""}
    row |= {"steps": 0, "of": None, "before": None, "after": None, "reward": None}
    try:
        facts = look(path)
        diagnosis = diagnose(facts)
        row |= {"status": diagnosis.status, "headline": diagnosis.headline, "steps": facts.steps_done}
        row["of"] = facts.config.get("steps")
        row["reward"] = number((facts.last_step or {}).get("learn/reward/mean"))
        scores = (facts.summary or {}).get("eval") or {}
        row["before"], row["after"] = (number((scores.get(moment) or {}).get("mean")) for moment in ("before", "after"))
    except Exception as error:  # whatever a foreign folder holds, the other runs are listed
        row["headline"] = row["headline"] or one_line(f"cannot be read: {type(error).__name__}: {error}")
    return row


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
