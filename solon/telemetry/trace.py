"""`trace.json`: the activity of every worker over time, for ui.perfetto.dev or chrome://tracing, appended as it occurs.

The file is an array of trace events, one per line (Google, "Trace Event Format": JSON array format). Its end may be
missing, so that the trace of a run that was killed, or still runs, can also be opened; when the run has ended it is
complete JSON.

Besides spans there are marks: faults, resizes and the like, on the track of their worker or on `run`, and the size of
each pool as a counter.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.events import needs_attention
from solon.files.json_text import json_text
from solon.records import Span
from solon.runs.directory import RunDirectory

NAME, EARLIER = "trace.json", "trace-earlier.json"
MAX_BYTES = 64 * 2**20
"""A larger file becomes `trace-earlier.json` and replaces the earlier one: half a million spans or so each."""
MARKED = ("resized", "lane_joined", "lane_left", "worker_recovered", "published", "checkpoint", "resumed", "trained")
"""Events of normal operation that are marked; all that need attention are."""
RUN_TRACK = "run"
"""Track of the marks that concern no worker."""
_OPEN = b"[\n"
_CLOSE = b'{"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"solon"}}\n]\n'


class TraceFile:
    """`trace = TraceFile(directory); trace.add(spans); trace.write(); trace.close()`. Not thread-safe.

    `write` and `close` raise what `RunDirectory.append_bytes` raises.
    """

    def __init__(self, directory: RunDirectory, *, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._path = directory.path / NAME
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self._tracks: set[int] = set()
        if self._path.exists():
            _reopen(self._path)

    def add(self, spans: Sequence[Span]) -> None:
        """Keeps the spans for the next `write`."""
        for span in spans:
            track = self._track(span.worker)
            start_us = round(span.start_s * 1e6)
            self._say(
                {
                    "ph": "X",
                    "pid": 1,
                    "tid": track,
                    "ts": start_us,
                    "dur": round(span.end_s * 1e6) - start_us,
                    "cat": span.lane,
                    "name": span.name,
                }
            )

    def mark(self, event: Mapping[str, Any]) -> None:
        """Keeps a mark for a line of events.jsonl, where it is one of `MARKED` or needs attention."""
        name = str(event["event"])
        if name not in MARKED and not needs_attention(name):
            return
        moment_us = round(event["time"] * 1e6)
        fields = {key: value for key, value in event.items() if key not in ("time", "event")}
        self._say(
            {
                "ph": "i",
                "s": "t",
                "pid": 1,
                "tid": self._track(str(event.get("worker", RUN_TRACK))),
                "ts": moment_us,
                "cat": "event",
                "name": _title(name, fields),
                "args": fields,
            }
        )
        if name == "resized":
            for size, at in ((event["before"], moment_us - 1), (event["after"], moment_us)):
                track = f"workers of {event['pool']}"
                self._say({"ph": "C", "pid": 1, "tid": 0, "ts": at, "name": track, "args": {"workers": size}})

    def write(self) -> None:
        """Write the spans added so far to the file."""
        if not self._lines:
            return
        # Taken out before writing: on a full disk the directory itself writes them a second time.
        text, self._lines = b"".join(self._lines), []
        size = self._path.stat().st_size if self._path.exists() else 0
        self._directory.append_bytes(NAME, text if size else _OPEN + text)
        if size + len(text) > self._max_bytes:
            self._directory.append_bytes(NAME, _CLOSE)
            self._path.replace(self._path.with_name(EARLIER))
            self._tracks.clear()

    def close(self) -> None:
        """Write the rest, and the end of the array."""
        self.write()
        if self._path.exists():
            self._directory.append_bytes(NAME, _CLOSE)

    def _track(self, worker: str) -> int:
        """The number of a worker's track, which it keeps after a resume."""
        track = zlib.crc32(worker.encode())
        if track not in self._tracks:
            self._tracks.add(track)
            self._say({"ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": {"name": worker}})
        return track

    def _say(self, event: dict[str, object]) -> None:
        self._lines.append(json_text(event).encode() + b",\n")


def _title(name: str, fields: Mapping[str, Any]) -> str:
    """What a mark is called: the event, and of a resize its pool and sizes."""
    if name == "resized":
        return f"{fields['pool']}: {fields['before']} to {fields['after']} workers"
    return f"version {fields['version']} attested" if name == "published" else name.replace("_", " ")


def _reopen(path: Path) -> None:
    """Removes the end of the array, so that more can be appended."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_CLOSE)))
        if file.read() == _CLOSE:
            file.truncate(size - len(_CLOSE))
