"""Reads a run's files and sends what is new to sinks. The run itself does not wait for a tracker, and does not know of
one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.tracking.sink import Sink

PERIOD_S = 2.0
ENDED = ("completed", "stopped", "failed")


class Follower:
    """`while not follower.poll(): time.sleep(2)`"""

    def __init__(self, run: Path, sinks: Sequence[Sink], *, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._sinks = list(sinks)
        self._read = 0
        self._next = 0
        """The step that comes next."""
        self._has_settings = False
        self.failed = False
        """A sink failed and was left out from then on."""

    def poll(self) -> bool:
        """Send what is new. Returns whether the run has ended."""
        if not self._has_settings and (config := _object(self._run / "config.json")):
            self._has_settings = True
            self._each(lambda sink: sink.settings(dict(_flat(config))))
        summary = _object(self._run / "summary.json")  # first: what was written before it is then read below
        for line in self._lines():
            self._send(line)
        if summary.get("status") not in ENDED:
            return False
        figures = {f"summary/{key}": value for key, value in _flat(summary) if _is_number(value)}
        self._each(lambda sink: sink.ended(summary["status"], figures))
        return True

    def close(self) -> None:
        """Write what is left."""
        self._each(lambda sink: sink.close())

    def _send(self, line: Mapping[str, Any]) -> None:
        step = line.get("step")
        if not isinstance(step, int):
            return
        if step < self._next:
            self._each(lambda sink: sink.back_to(step))
        self._next = step + 1
        values = {name: float(value) for name, value in line.items() if "/" in name and _is_number(value)}
        moment: Any = line.get("time")
        time_s = float(moment) if _is_number(moment) else time.time()
        self._each(lambda sink: sink.step(step, values, time_s=time_s))

    def _lines(self) -> list[Mapping[str, Any]]:
        """Whole lines of metrics.jsonl since the last look."""
        try:
            if not (self._run / "metrics.jsonl").is_file():
                return []
            with (self._run / "metrics.jsonl").open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._read = 0  # the file was cut to an earlier checkpoint
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        found: list[Mapping[str, Any]] = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                found.append(record)
        return found

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:  # one tracker does not stop the others
                self._sinks.remove(sink)
                self.failed = True
                self._say(f"{type(sink).__name__} failed and gets nothing more: {type(error).__name__}: {error}")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
