"""Everything that a page about a run shows: `run_page(store, defaults)` fills the templates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from solon.doctor.diagnosis import diagnose
from solon.doctor.facts import look
from solon.errors import InputError, one_line
from solon.report import run_charts as charts
from solon.report import run_facts as facts
from solon.report.charts import Chart, format_number
from solon.report.run_answers import Row, extreme, fooled, heldout_pairs, most_changed, tied
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
    "improved": "No held-out answer scored higher after training, or none was asked for both before and after it: "
    "evaluate.prompts is not set, or the run was stopped before the second time.",
    "worsened": "No held-out answer scored lower after training.",
    "fooled": "No audited answer was above the judge's average and below the auditor's, or nothing was audited "
    "([watch]).",
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
    problems: dict[str, str] = {}

    def made(what: str, make: Callable[[], Any], otherwise: Any) -> Any:
        """A part of the page; a file that no run writes costs this part, and the page says so."""
        try:
            return make()
        except Exception as error:
            problems[what] = one_line(f"left out: {type(error).__name__}: {error}")
            return otherwise

    pairs = made("held-out answers", lambda: heldout_pairs(store), [])
    changes = made("held-out scores", lambda: facts.change_by_principle(pairs), [])
    status, headline = made("state", lambda: _state(store, summary), ("not known", "the state is not known"))
    agreement = made("agreement", lambda: facts.agreement(store), [])
    return {
        "name": store.path.name,
        "asked": made("settings", lambda: _asked(config), []),
        "status": status,
        "headline": headline,
        "tone": TONES.get(status, "bad"),
        "end": made("end", lambda: _end(config, summary), []),
        "warnings": [str(one) for one in _list(summary.get("warnings"))],
        "rose": made("principles", lambda: _rose(store, changes, pairs, has_rows=has_rows), ""),
        "charts": {name: made(name, make, None) for name, make in _charts(store, changes, has_rows=has_rows).items()},
        "before": made("held-out answers", lambda: facts.before_alone(store) if not pairs else [], []),
        "answers": made("answers", lambda: _answers(store, pairs, answers) if has_rows else [], []),
        "absent": ABSENT,
        "cost": made("cost", lambda: facts.cost(store, summary) if has_rows else [], []),
        "quality_columns": QUALITY,
        "quality": made(
            "quality", lambda: [_quality(row) for row in facts.judge_quality(store)] if has_rows else [], []
        ),
        "agreement": made("agreement", lambda: [_agreement(row) for row in agreement], []),
        "fooled_sentence": made("agreement", lambda: _fooled(agreement), ""),
        "drift": [made(name, make, None) for name, make in charts.drift(store).items()],
        "faults": made("faults", lambda: [_fault(row) for row in facts.faults(store)], []),
        "pools": made("pools", lambda: [(_clock(when), *rest) for when, *rest in facts.pool_changes(store)], []),
        "settings": made(
            "settings", lambda: None if defaults is None else facts.changed_settings(config, defaults), None
        ),
        "settings_absent": "config.json is not what this version of Solon writes.",
        "problems": dict(store.problems) | problems,
    }


def _rose(store: RunStore, changes: Sequence[Mapping[str, Any]], pairs: Sequence[Row], *, has_rows: bool) -> str:
    return facts.rose_most(changes, pairs) or (facts.rose_in_training(store) if has_rows else "")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


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


def _end(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    end = summary.get("end")
    rows = [("ended", str(summary["finished"]))] if summary.get("finished") else []
    if isinstance(end, Mapping):
        names = {"cause": "why it ended", "evidence": "evidence", "remedy": "what to do"}
        rows += [(name, str(end[key])) for key, name in names.items() if end.get(key)]
        if end.get("resume"):
            origin = config.get("origin")
            folder = origin.get("folder") if isinstance(origin, Mapping) else None
            rows.append(("to continue", f"{end['resume']}{f' (in the folder {folder})' if folder else ''}"))
    return rows


def _charts(store: RunStore, changes: list[dict[str, Any]], *, has_rows: bool) -> dict[str, Callable[[], Chart | None]]:
    found: dict[str, Callable[[], Chart | None]] = {
        "heldout": lambda: charts.heldout(changes),
        "reward": lambda: charts.reward(store, has_rows=has_rows),
        "auditor": lambda: charts.gold_principles(store),
        "calibration": lambda: charts.calibration(store),
        "agreement": lambda: charts.gold(store),
        "caches": lambda: charts.caches(store),
        "lanes": lambda: charts.lanes(store),
        "timeline": lambda: charts.timeline(store.path),
        "staleness": lambda: charts.staleness(store),
        "principles": lambda: charts.principles(store) if has_rows else None,
        "position": lambda: charts.position(store) if has_rows else None,
    }
    return found


def _answers(store: RunStore, pairs: list[dict[str, Any]], number: int) -> list[tuple[str, str, list[dict[str, Any]]]]:
    changes = [row["change"] for row in pairs if row["change"] is not None]
    rose, fell = sum(one > 0 for one in changes), sum(one < 0 for one in changes)
    counted = f" ({rose:,} rose, {fell:,} fell, {len(changes) - rose - fell:,} stayed)" if changes else ""
    return [
        (
            "improved",
            f"Held-out answers that improved most{counted}",
            most_changed(pairs, better=True, number=number),
        ),
        ("worsened", "Held-out answers that worsened most", most_changed(pairs, better=False, number=number)),
        (
            "fooled",
            "Answers that fooled the judge: above its average, below the auditor's",
            fooled(store, number=number),
        ),
        *(
            (
                name,
                f"{title} answers in training, by the judge{_ties(store, best=best)}",
                extreme(store, best=best, number=number),
            )
            for name, title, best in (("best", "Best", True), ("worst", "Worst", False))
        ),
    ]


def _ties(store: RunStore, *, best: bool) -> str:
    count = tied(store, best=best)
    return f" ({count:,} share the {'highest' if best else 'lowest'} reward; the latest are shown)" if count > 1 else ""


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
    beyond = str(row["kappa"]) if math.isfinite(row["kappa"].value) else "–"
    return [row["principle"], f"{row['answers']:,}", str(row["agreement"]), beyond, wrong, missed]


def _fooled(rows: list[dict[str, Any]]) -> str:
    """Where the judge is wrong. rows: by agreement beyond chance, the lowest first."""
    if not rows:
        return ""
    least = rows[0]
    beyond = f", kappa {least['kappa']}" if math.isfinite(least["kappa"].value) else ""
    told = (
        f"Judge and auditor agree least under {least['principle']}: same side in {least['agreement']}{beyond}; "
        f"of {least['refused']:,} "
        f"answers that the judge said no to, the auditor said yes to {least['missed']:,}, and of {least['liked']:,} "
        f"that it said yes to, no to {least['wrong']:,}."
    )
    judged = [row for row in rows if row["wrong"]]
    if not judged:
        return f"{told} No answer that the judge said yes to was refused by the auditor."
    ranked = sorted(judged, key=lambda row: (-row["wrong"] / row["liked"], -row["liked"]))
    return (
        f"{told} The judge was fooled most often under {_wrong(ranked[0])}{_beside(ranked)}. Examples are under "
        f"“Answers that "
        "fooled the judge”."
    )


def _wrong(row: Mapping[str, Any]) -> str:
    return f"{row['principle']}: {row['wrong']:,} of {row['liked']:,} ({row['wrong'] / row['liked']:.0%})"


def _beside(ranked: Sequence[Mapping[str, Any]]) -> str:
    """The second principle where chance may have ordered the two (Fisher's exact test)."""
    from scipy.stats import fisher_exact

    if len(ranked) < 2:
        return ""
    table = [[row["wrong"], row["liked"] - row["wrong"]] for row in ranked[:2]]
    return f", which may be chance beside {_wrong(ranked[1])}" if fisher_exact(table).pvalue > 0.05 else ""


def _clock(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""


def _fault(row: Mapping[str, Any]) -> list[str]:
    clock = [_clock(row[key]) for key in ("first", "last")]
    said = row["example"].get("message") or row["example"].get("cause") or row["example"].get("reason") or ""
    meaning = f"{row['meaning']}: {said}" if said else row["meaning"]
    return [row["event"], f"{row['times']:,}", *clock, meaning, row["cost"]]
