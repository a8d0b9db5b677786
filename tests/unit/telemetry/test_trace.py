"""The trace of a run, for every kind of end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from solon.events import EVENTS, event_line, needs_attention
from solon.records import Span
from solon.runs.directory import RunDirectory
from solon.telemetry.trace import EARLIER, NAME, TraceFile


def span(worker: str, start_s: float, end_s: float) -> Span:
    return Span(lane="learn", worker=worker, name="work", start_s=start_s, end_s=end_s)


def events(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    return found


def work(found: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(worker, start, duration) in microseconds."""
    names = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    return [(names[e["tid"]], e["ts"], e["dur"]) for e in found if e["ph"] == "X"]


def test_every_worker_has_a_named_track_and_every_span_its_microseconds(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path))
    trace.add([span("a", 1.5, 2.0), span('quo"te\n', 2.0, 2.25)])
    trace.write()
    trace.add([span("a", 3.0, 3.5)])
    trace.close()
    found = events((tmp_path / NAME).read_text())
    assert work(found) == [("a", 1_500_000, 500_000), ('quo"te\n', 2_000_000, 250_000), ("a", 3_000_000, 500_000)]
    assert sum(e["name"] == "thread_name" for e in found) == 2


def test_the_trace_of_a_run_that_was_killed_lacks_nothing_but_its_end(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path))
    trace.add([span("a", 1, 2), span("b", 2, 3)])
    trace.write()
    text = (tmp_path / NAME).read_text()
    assert text.endswith(",\n")
    assert len(work(events(text.removesuffix(",\n") + "]"))) == 2


def test_a_resumed_run_adds_to_its_trace_after_an_end_or_a_kill(tmp_path: Path):
    for turn in range(4):
        directory = RunDirectory.reopen(tmp_path)
        trace = TraceFile(directory)
        trace.add([span("a", turn, turn + 1)])
        if turn % 2:
            trace.close()
        else:
            trace.write()
            with (tmp_path / NAME).open("ab") as file:
                file.write(b'{"ph":"X","pid"')  # killed in the midst of a line
        directory.close()
    assert [start for _, start, _ in work(events((tmp_path / NAME).read_text()))] == [0, 1e6, 2e6, 3e6]


def test_a_large_trace_is_replaced_by_a_new_one_that_names_its_tracks_again(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path), max_bytes=2000)
    for second in range(100):
        trace.add([span("a", second, second + 1)])
        trace.write()
    trace.close()
    earlier, last = (events((tmp_path / name).read_text()) for name in (EARLIER, NAME))
    starts = [start for found in (earlier, last) for _, start, _ in work(found)]
    assert starts == [second * 10**6 for second in range(100 - len(starts), 100)]
    assert (tmp_path / EARLIER).stat().st_size < 3000


def test_a_run_without_spans_has_no_trace(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path))
    trace.write()
    trace.close()
    assert list(tmp_path.iterdir()) == []


# -- marks ------------------------------------------------------------------------------------------------------------


def marks(found: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """(track, name, time in microseconds)."""
    names = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    return [(names[e["tid"]], e["name"], e["ts"]) for e in found if e["ph"] == "i"]


def test_resizes_losses_and_drains_are_marked_on_the_track_of_their_worker_or_of_the_run(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path))
    trace.add([span("rollout-0", 1, 2)])
    for line in (
        event_line("resized", time_s=2.0, pool="rollout", before=1, after=3, reason="the load asks for it"),
        event_line("lane_joined", time_s=3.0, worker="rollout-1"),
        event_line("worker_draining", time_s=4.0, worker="rollout-0", left_s=30.0),
        event_line("worker_lost", time_s=5.0, worker="rollout-0", cause="its node died"),
        event_line("lane_left", time_s=6.0, worker="rollout-1", returned=2),
        event_line("started", time_s=7.0, config_hash="", step=0),
    ):
        trace.mark(line)
    trace.close()
    found = events((tmp_path / NAME).read_text())
    assert marks(found) == [
        ("run", "rollout: 1 to 3 workers", 2_000_000),
        ("rollout-1", "lane joined", 3_000_000),
        ("rollout-0", "worker draining", 4_000_000),
        ("rollout-0", "worker lost", 5_000_000),
        ("rollout-1", "lane left", 6_000_000),
    ]
    assert next(e["args"] for e in found if e["name"] == "worker lost") == {
        "worker": "rollout-0", "cause": "its node died",
    }  # fmt: skip
    assert [(e["name"], e["ts"], e["args"]) for e in found if e["ph"] == "C"] == [
        ("workers of rollout", 1_999_999, {"workers": 1}),
        ("workers of rollout", 2_000_000, {"workers": 3}),
    ]
    assert all(e["s"] == "t" for e in found if e["ph"] == "i")


def test_every_event_that_needs_attention_can_be_marked(tmp_path: Path):
    trace = TraceFile(RunDirectory(tmp_path))
    for kind in EVENTS.values():
        values = {str: "x", int: 1, float: 1.0, bool: True, list: [], dict: {}}
        fields = {key: values.get(field.type) for key, field in kind.fields.items()}  # type: ignore[call-overload]
        trace.mark(event_line(kind.name, time_s=1.0, **fields))
    trace.close()
    named = {name for _, name, _ in marks(events((tmp_path / NAME).read_text()))}
    assert {kind.name.replace("_", " ") for kind in EVENTS.values() if needs_attention(kind.name)} <= named
