"""Groups of a run as the label browser lists them, and everything about one group."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve_apps.watch.runs import OpenRun
from solon.report.run_answers import turns

PAGE = 50
ORDERS = {
    "doubt": "doubt DESC, ordinal DESC, attempt DESC",
    "newest": "ordinal DESC, attempt DESC",
    "oldest": "ordinal, attempt",
    "best": "reward DESC NULLS LAST, ordinal",
    "worst": "reward NULLS LAST, ordinal",
    "spread": "spread DESC NULLS LAST, ordinal",
}
"""doubt: where the judge is least to be trusted, first."""
_DOUBT = """CASE WHEN h.parent_label_id IS NOT NULL THEN 3
    WHEN NOT l.valid THEN 1.5 WHEN l.consistent = false THEN 2
    ELSE 2 / (1 + exp(least(abs(l.margin), 500))) END"""
"""Of a label: 3: a person overruled or flagged it; 2: both orders disagree; 1.5: no number; else 1 at a margin of 0
down to 0 where the judge is sure."""


class Filter(BaseModel):
    """What the browser lists."""

    model_config = ConfigDict(frozen=True)

    q: str = Field("", max_length=1000)
    """Text in the prompt or an answer."""
    principle: str = Field("", max_length=1000)
    step: int | None = Field(None, ge=0, lt=2**62)
    status: str = Field("", max_length=100)
    """Of a label; `human`: labelled by a person."""
    order: str = Field("doubt", max_length=20)
    start: int = Field(0, ge=0, lt=2**40)

    @field_validator("step", mode="before")
    @classmethod
    def _empty_is_all(cls, value: Any) -> Any:
        return None if value == "" else value


def listed(run: OpenRun, chosen: Filter) -> tuple[int, list[dict[str, Any]]]:
    """Number of groups that match, and those of the page that begins at `start`."""
    where, parameters = _conditions(chosen)
    labels = "WHERE l.principle_id = ?" if chosen.principle else ""
    query = f"""
        WITH r AS (SELECT ordinal, attempt, any_value(prompt) AS prompt, max(step) AS step, avg(reward) AS reward,
                          stddev_pop(reward) AS spread, count(*) AS answers, string_agg(text, ' ') AS texts
                   FROM rollouts GROUP BY ordinal, attempt),
             d AS (SELECT l.ordinal, l.attempt, max({_DOUBT}) AS doubt, count(*) AS labels,
                          bool_or(h.parent_label_id IS NOT NULL) AS human,
                          list(DISTINCT l.status) AS statuses
                   FROM labels l LEFT JOIN (SELECT DISTINCT parent_label_id FROM human) h
                   ON h.parent_label_id = l.label_id {labels} GROUP BY l.ordinal, l.attempt)
        SELECT r.* EXCLUDE texts, coalesce(d.doubt, 0) AS doubt, coalesce(d.labels, 0) AS labels,
               coalesce(d.human, false) AS human, count(*) OVER () AS matching
        FROM r {"JOIN" if chosen.principle else "LEFT JOIN"} d USING (ordinal, attempt) {where}
        ORDER BY {ORDERS.get(chosen.order, ORDERS["doubt"])} LIMIT {PAGE} OFFSET {max(0, chosen.start)}"""
    first = [chosen.principle] if chosen.principle else []
    rows = run.store.rows(query, [*first, *parameters])
    for row in rows:
        row["prompt"] = turns(row["prompt"])
    return (rows[0]["matching"] if rows else 0), rows


def _conditions(chosen: Filter) -> tuple[str, list[Any]]:
    parts: list[str] = []
    parameters: list[Any] = []
    if chosen.q:
        parts.append("(contains(lower(r.prompt), lower(?)) OR contains(lower(r.texts), lower(?)))")
        # Prompts are stored as JSON: other letters than ASCII are escaped there.
        parameters += [json.dumps(chosen.q)[1:-1], chosen.q]
    if chosen.step is not None:
        parts.append("r.step = ?")
        parameters.append(chosen.step)
    if chosen.status == "human":
        parts.append("d.human")
    elif chosen.status:
        parts.append("list_contains(d.statuses, ?)")
        parameters.append(chosen.status)
    return (f"WHERE {' AND '.join(parts)}" if parts else ""), parameters


def choices(run: OpenRun) -> dict[str, Any]:
    """Values to choose from in the browser."""
    column = "SELECT DISTINCT {0} AS v FROM labels WHERE {0} IS NOT NULL ORDER BY v LIMIT 200"
    return {
        "principles": [row["v"] for row in run.store.rows(column.format("principle_id"))],
        "statuses": [row["v"] for row in run.store.rows(column.format("status"))],
        "last_step": run.store.value("SELECT max(step) FROM rollouts"),
    }


def group(run: OpenRun, ordinal: int, attempt: int) -> dict[str, Any] | None:
    """The answers of a group with their labels, audits and labels of people; None: there is no such group."""
    key = [ordinal, attempt]
    answers = run.store.rows(
        "SELECT * FROM rollouts WHERE ordinal = ? AND attempt = ? QUALIFY row_number() OVER "
        '(PARTITION BY "index" ORDER BY created_ns DESC) = 1 ORDER BY "index"',
        key,
    )
    if not answers:
        return None
    labels = run.store.rows(
        "SELECT * FROM labels WHERE ordinal = ? AND attempt = ? QUALIFY row_number() OVER (PARTITION BY label_id "
        "ORDER BY created_ns DESC) = 1 ORDER BY principle_id, question_id, rollouts",
        key,
    )
    people = run.store.rows(
        "SELECT * FROM human WHERE list_contains(?, parent_label_id) ORDER BY created_ns",
        [[label["label_id"] for label in labels]],
    )
    records = run.store.rows("SELECT * FROM groups WHERE ordinal = ? AND attempt = ?", key)
    audits = run.store.rows("SELECT * FROM audits WHERE ordinal = ? AND attempt = ?", key)
    for label in labels:
        label["human"] = [one for one in people if one["parent_label_id"] == label["label_id"]]
        for one in label["human"]:
            one["is_replaced"] = any(
                later["who"] == one["who"] and later["created_ns"] > one["created_ns"] for later in label["human"]
            )
        label |= {
            "orders": _both_orders(label),
            "principle": label["principle_id"],
            "question": label["question_id"],
            "p": probability(label["margin"]),
        }
    for answer in answers:
        answer["labels"] = [label for label in labels if answer["index"] in (label["rollouts"] or ())]
        found = next((one for one in audits if one["index"] == answer["index"]), None)
        answer["gold"] = found and found["gold"]
        answer["gold_margins"] = json.loads(found["gold_margins"]) if found else {}
    return {
        "ordinal": ordinal,
        "attempt": attempt,
        "prompt": turns(answers[0]["prompt"]),
        "prompt_id": answers[0]["prompt_id"],
        "tags": answers[0]["tags"] or [],
        "step": answers[0]["step"],
        "answers": answers,
        "labels": labels,
        "course": course(records[0]) if records else "",
    }


def course(record: Mapping[str, Any]) -> str:
    """How long a group took from one stage to the next, and who worked on it, in one line.

    >>> course({"admitted": 1.0, "granted": 1.0, "generated": 3.5, "labelled": 4.0, "time": 6.0, "engine": "rollout-0",
    ...         "judge": "judge-1", "outcome": "trained", "reason": None})
    'generated by rollout-0 in 2.50 s, labelled by judge-1 0.50 s later, trained 2.00 s after that'
    """
    parts = []
    if record["generated"] is not None:
        since = record["granted"]
        took = "" if since is None else f" in {record['generated'] - since:.2f} s"
        parts.append(f"generated by {record['engine'] or 'an engine'}{took}")
    last = record["generated"]
    if record["labelled"] is not None:
        later = "" if last is None else f" {record['labelled'] - last:.2f} s later"
        parts.append(f"labelled by {record['judge'] or 'a judge'}{later}")
        last = record["labelled"]
    after = "" if last is None or record["time"] is None else f" {record['time'] - last:.2f} s after that"
    reason = f" ({record['reason']})" if record["reason"] else ""
    return ", ".join([*parts, f"{record['outcome'] or 'ended'}{after}{reason}"])


def probability(margin: float | None) -> float | None:
    """Of yes, or of the first answer."""
    return None if margin is None else 1 / (1 + math.exp(-max(-500.0, min(500.0, margin))))


def _both_orders(label: dict[str, Any]) -> tuple[float, float] | None:
    """Log-odds of the first answer when it was shown first, and when it was shown second; None: not asked in both
    orders. The raw margin is their mean, the offset half of their difference."""
    if label["raw_margin"] is None or label["position_offset"] is None:
        return None
    return label["raw_margin"] + label["position_offset"], label["raw_margin"] - label["position_offset"]


def label_of(run: OpenRun, label_id: str) -> dict[str, Any] | None:
    """One label."""
    found = run.store.rows("SELECT * FROM labels WHERE label_id = ? ORDER BY created_ns DESC LIMIT 1", [label_id])
    return found[0] if found else None


def around(run: OpenRun, chosen: Filter, ordinal: int, attempt: int) -> tuple[str, str]:
    """Names of the groups before and after one in the list, on the page that `start` names; empty: none."""
    _, rows = listed(run, chosen)
    names = [f"{row['ordinal']}-{row['attempt']}" for row in rows]
    place = names.index(f"{ordinal}-{attempt}") if f"{ordinal}-{attempt}" in names else -1
    if place < 0:
        return "", names[0] if names else ""
    return (names[place - 1] if place else ""), (names[place + 1] if place + 1 < len(names) else "")
