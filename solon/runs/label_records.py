"""A label as one flat record: the keys of labels/*.parquet and of a checkpoint's feedback.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from solon.records import Label
from solon.verdicts import Verdict

_LABEL = tuple(field.name for field in dataclasses.fields(Label) if field.name != "verdict")
_VERDICT = tuple(field.name for field in dataclasses.fields(Verdict))
_DEFAULTS: Mapping[str, Any] = {
    **{field.name: field.default for field in (*dataclasses.fields(Label), *dataclasses.fields(Verdict))},
    "questions": 1,
}
"""Values that `compact` leaves out. Files written before labels held their verdict omit `questions` where it is 1."""


def compact(label: Label) -> dict[str, Any]:
    """The fields of a label and of its verdict side by side, without those that equal their default."""
    flat = {name: getattr(label, name) for name in _LABEL} | {name: getattr(label.verdict, name) for name in _VERDICT}
    return {name: value for name, value in flat.items() if value != _DEFAULTS[name]}


def nested(record: Mapping[str, Any]) -> dict[str, Any]:
    """A flat record as arguments of `Label`: `{"task": ..., "verdict": {"status": ...}}`. Unknown keys are left out."""
    verdict = {"questions": _DEFAULTS["questions"]} | {name: record[name] for name in _VERDICT if name in record}
    return {name: record[name] for name in _LABEL if name in record} | {"verdict": verdict}
