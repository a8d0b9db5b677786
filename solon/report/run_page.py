"""Everything that a page about a run shows: `run_page(store, defaults)` fills the templates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from solon.doctor.diagnosis import diagnose
from solon.doctor.facts import look
from solon.errors import InputError
from solon.report import run_charts as charts
from solon.report import run_facts as facts
from solon.report.charts import format_number
from solon.report.run_answers import extreme, fooled, heldout_pairs, most_changed
from solon.report.store import RunStore

SECTIONS = (
    ("outcome", "Outcome"),
    ("principles", "Principles"),
    ("answers", "Answers"),
    ("feedback", "Feedback and cost"),
    ("overlap", "Lanes"),
    ("drift", "Drift"),
    ("faults", "Faults"),
    ("settings", "Settings"),
)
ABSENT = {
    "changed": "No held-out prompts were answered before and after training (evaluate.prompts in the run file).",
    "fooled": "No audited answer was liked by the judge and disliked by the auditor, or nothing was audited ([watch]).",
    "best": "No answer has a reward.",
    "worst": "No answer has a reward.",
}
ENDED = ("completed", "stopped", "failed")
TONES = {"completed": "good", "running": "good", "starting": "good", "finishing": "good", "stopped": "warn"}
QUALITY = (
    "principle",
    "task",
    "labels",
    "valid",
    "mean |margin|, nats",
    "orders agree",
    "first favoured, nats",
    "cached",
)


def run_page(
    store: RunStore, *, defaults: Mapping[str, Any] | None, answers: int = 10, has_rows: bool = True
) -> dict[str, Any]:
    """Values for `run.html`. defaults: of the settings, flat by dotted key; None: not known. has_rows: labels and
    answers are read; else what follows from them is left out."""
    config, summary = store.object("config.json"), store.object("summary.json")
    pairs = heldout_pairs(store)
    changes = facts.change_by_principle(pairs)
    status, headline = _state(store, summary)
    agreement = facts.agreement(store)
    return {
        "name": store.path.name,
        "asked": _asked(config),
        "status": status,
        "headline": headline,
        "tone": TONES.get(status, "bad"),
        "end": _end(summary),
        "warnings": [str(one) for one in summary.get("warnings") or ()],
        "rose": facts.rose_most(changes, pairs) or (has_rows and facts.rose_in_training(store)),
        "charts": _charts(store, changes, has_rows=has_rows),
        "answers": _answers(store, pairs, answers) if has_rows else [],
        "absent": ABSENT,
        "cost": facts.cost(store, summary) if has_rows else [],
        "quality_columns": QUALITY,
        "quality": [_quality(row) for row in facts.judge_quality(store)] if has_rows else [],
        "agreement": [_agreement(row) for row in agreement],
        "fooled_sentence": _fooled(agreement),
        "drift": charts.drift(store),
        "faults": [_fault(row) for row in facts.faults(store)],
        "settings": None if defaults is None else facts.changed_settings(config, defaults),
        "settings_absent": "config.json is not what this version of Solon writes.",
        "problems": dict(store.problems),
    }


def _state(store: RunStore, summary: Mapping[str, Any]) -> tuple[str, str]:
    try:
        diagnosis = diagnose(look(store.path))
    except InputError as error:
        return str(summary.get("status", "not known")), str(error)
    if diagnosis.status == "finishing" and summary.get("status") in ENDED:  # the report is written at the very end
        return str(summary["status"]), f"{summary['status']} after {summary.get('steps', 0)} steps"
    return diagnosis.status, diagnosis.headline


def _asked(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "policy": "policy",
        "judge": "judge",
        "prompts": "prompts",
        "constitution": "constitution",
        "steps": "steps",
    }
    rows = [(name, str(config[key])) for key, name in names.items() if config.get(key) not in (None, "")]
    if isinstance(feedback := config.get("feedback"), Mapping):
        rows.append(("feedback", str(feedback.get("task", ""))))
    return rows


def _end(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    end = summary.get("end")
    rows = [("ended", str(summary["finished"]))] if summary.get("finished") else []
    if isinstance(end, Mapping):
        names = {"cause": "why it ended", "evidence": "evidence", "remedy": "what to do", "resume": "to continue"}
        rows += [(name, str(end[key])) for key, name in names.items() if end.get(key)]
    return rows


def _charts(store: RunStore, changes: list[dict[str, Any]], *, has_rows: bool) -> dict[str, Any]:
    return {
        "heldout": charts.heldout(changes),
        "reward": charts.reward(store, has_rows=has_rows),
        "principles": charts.principles(store) if has_rows else None,
        "auditor": charts.gold_principles(store),
        "calibration": charts.calibration(store),
        "agreement": charts.gold(store),
        "position": charts.position(store) if has_rows else None,
        "caches": charts.caches(store),
        "lanes": charts.lanes(store),
        "timeline": charts.timeline(store.path),
        "staleness": charts.staleness(store),
    }


def _answers(store: RunStore, pairs: list[dict[str, Any]], number: int) -> list[tuple[str, str, list[dict[str, Any]]]]:
    return [
        ("changed", "Held-out answers that changed most", most_changed(pairs, number=number)),
        ("fooled", "Answers that fooled the judge", fooled(store, number=number)),
        ("best", "Best answers in training, by the judge", extreme(store, best=True, number=number)),
        ("worst", "Worst answers in training, by the judge", extreme(store, best=False, number=number)),
    ]


def _quality(row: Mapping[str, Any]) -> list[str]:
    shares = [format_number(row[key], share=True) for key in ("valid", "consistent", "cached")]
    return [
        str(row["principle"] or ""),
        str(row["task"]),
        f"{row['labels']:,}",
        shares[0],
        format_number(row["certainty"]),
        shares[1],
        format_number(row["position"]),
        shares[2],
    ]


def _agreement(row: Mapping[str, Any]) -> list[str]:
    errors = (("wrong", "liked"), ("missed", "refused"))
    wrong, missed = (f"{row[a]:,} of {row[b]:,}" if row[b] else "–" for a, b in errors)
    return [row["principle"], f"{row['answers']:,}", str(row["agreement"]), wrong, missed]


def _fooled(rows: list[dict[str, Any]]) -> str:
    """Where the judge is wrong. rows: by agreement, the lowest first."""
    if not rows:
        return ""
    least = rows[0]
    told = (
        f"Judge and auditor agree least under {least['principle']}: {least['agreement']}; of {least['refused']:,} "
        f"answers that the judge said no to, the auditor said yes to {least['missed']:,}, and of {least['liked']:,} "
        f"that it said yes to, no to {least['wrong']:,}."
    )
    judged = [row for row in rows if row["wrong"]]
    if not judged:
        return f"{told} No answer that the judge said yes to was refused by the auditor."
    worst = max(judged, key=lambda row: (row["wrong"] / row["liked"], row["liked"]))
    return (
        f"{told} The judge was fooled most often under {worst['principle']}: {worst['wrong']:,} of {worst['liked']:,} "
        f"({worst['wrong'] / worst['liked']:.0%}). Examples are under “Answers that fooled the judge”."
    )


def _fault(row: Mapping[str, Any]) -> list[str]:
    clock = [
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row[key])) if row[key] else "" for key in ("first", "last")
    ]
    said = row["example"].get("message") or row["example"].get("cause") or row["example"].get("reason") or ""
    meaning = f"{row['meaning']}: {said}" if said else row["meaning"]
    return [row["event"], f"{row['times']:,}", *clock, meaning, row["cost"]]
