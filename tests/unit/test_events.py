"""Events are declared in one table; every call that emits one agrees with it."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from solon.cli.run_lines import repeated
from solon.doctor.events import OWN_FINDINGS, recent_faults
from solon.events import EVENTS, Field, Severity, event_line, is_counted, is_shown, needs_attention
from solon.feedback.watching.alarm import Alarm
from solon.telemetry.totals import RunTotals

ROOT = Path(__file__).resolve().parents[2]
EMITTERS = ("event", "emit", "event_line")
"""Names of the functions that take an event, without leading underscores."""
SOURCES = [path for folder in ("solon", "cluster", "actors") for path in sorted((ROOT / folder).rglob("*.py"))]


@dataclass(frozen=True)
class Emitted:
    """One call in the source that emits an event."""

    where: str
    name: str
    fields: frozenset[str]
    is_open: bool
    """It passes further fields as `**fields`, which the source does not name."""


def emitted(tree: ast.AST, where: str) -> Iterator[Emitted]:
    """Calls whose first argument is the name of an event."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function.lstrip("_") in EMITTERS and isinstance(node.args[0].value, str):
            named = frozenset(word.arg for word in node.keywords if word.arg is not None) - {"time_s"}
            is_open = any(word.arg is None for word in node.keywords)
            yield Emitted(f"{where}:{node.lineno}", node.args[0].value, named, is_open)


def mistakes(calls: Iterator[Emitted]) -> list[str]:
    """Calls that do not agree with the table."""
    wrong = []
    for call in calls:
        if call.name not in EVENTS:
            wrong.append(f"{call.where}: event {call.name!r} is not in solon/events.py")
            continue
        kind = EVENTS[call.name]
        if unknown := call.fields - kind.fields.keys():
            wrong.append(f"{call.where}: {call.name} has no field {sorted(unknown)}")
        if not call.is_open and (missing := kind.fields.keys() - call.fields - kind.optional):
            wrong.append(f"{call.where}: {call.name} lacks {sorted(missing)}")
    return wrong


def all_calls() -> Iterator[Emitted]:
    for path in SOURCES:
        yield from emitted(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT)))


def test_every_emitted_event_is_declared_with_exactly_its_fields():
    assert mistakes(all_calls()) == []


def test_every_declared_event_is_emitted():
    assert {call.name for call in all_calls()} == set(EVENTS)


def test_an_unknown_event_an_unknown_field_and_a_missing_field_are_found():
    source = (
        "emit('worker_vanished')\n"
        "self._emit('call_lost', worker='a', cause='b', colour='c')\n"
        "recorder.event('call_lost', worker='a')\n"
        "recorder.event('call_lost', **fields)\n"
        "event_line('ended', time_s=1.0, steps=3)\n"
    )
    assert mistakes(emitted(ast.parse(source), "x.py")) == [
        "x.py:1: event 'worker_vanished' is not in solon/events.py",
        "x.py:2: call_lost has no field ['colour']",
        "x.py:3: call_lost lacks ['cause']",
    ]


def test_a_line_of_an_unknown_event_or_field_cannot_be_written():
    with pytest.raises(AssertionError, match=r"'worker_vanished' is not in solon\.events"):
        event_line("worker_vanished", time_s=1.0)
    with pytest.raises(AssertionError, match=r"'ended' has no fields \['colour'\], expected \['steps'\]"):
        event_line("ended", time_s=1.0, steps=3, colour="red")
    assert event_line("ended", time_s=1.0, steps=3) == {"time": 1.0, "event": "ended", "steps": 3}


def test_an_alarm_has_the_fields_of_its_event():
    assert {field.name for field in dataclasses.fields(Alarm)} == EVENTS["alarm"].fields.keys()


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (int, [3], [3.5, True, "3", None]),
        (float, [3, 3.5, math.inf], [True, "3", None]),
        (float | None, [3, 0.5, None], [True, []]),
        (int | None, [3, None], [0.5, False]),
        (bool, [True], [1, None]),
        (list, [[]], [{}, "x"]),
    ],
)
def test_a_field_accepts_values_of_its_type_alone(type_, good: list[object], bad: list[object]):
    field = Field(type_, "")
    assert [value for value in good if not field.accepts(value)] == []
    assert [value for value in bad if field.accepts(value)] == []


def test_optional_fields_are_fields():
    assert [kind.name for kind in EVENTS.values() if not kind.optional <= kind.fields.keys()] == []


def test_every_warning_and_every_fault_is_shown_to_the_user():
    assert [kind.name for kind in EVENTS.values() if kind.severity is not Severity.INFO and not kind.is_shown] == []


def test_the_summary_counts_every_fault_and_every_recovery():
    totals = RunTotals(staleness_bound=1, total_steps=1)
    for name in EVENTS:
        totals.fault(name, {})
    faults = {name for name, kind in EVENTS.items() if kind.severity is Severity.FAULT}
    assert set(totals.faults) == faults | {"worker_recovered", "tokens_salvaged", "resumed"}


def test_the_doctor_reports_every_warning_and_fault_once():
    told = "\n".join(
        line for name in EVENTS for line in recent_faults([{"time": 1.0, "event": name, "worker": "w"}], now=2.0)
    )
    expected = {name for name in EVENTS if needs_attention(name)} - set(OWN_FINDINGS)
    assert {line.removeprefix("1 x ").removesuffix(" w").replace(" ", "_") for line in told.splitlines()} == expected


def test_names_of_another_version_are_neither_shown_nor_counted():
    assert (is_shown("odd"), is_counted("odd"), needs_attention("odd")) == (False, False, False)
    assert repeated("odd", 1) == "odd"
