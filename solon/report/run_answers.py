"""Answers of a run: the best, the worst, those that changed most, and those on which judge and auditor disagree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from solon.report.store import RunStore

Row = dict[str, Any]
TEXT_CHARACTERS = 2000
"""Of an answer in the report; the live page shows all of it."""
WORDS = 6
"""Most words and phrases reported for a principle."""
LONGEST_PHRASE = 5

_KEY = 'ordinal, attempt, "index"'
_WITH_LABELS = """
    SELECT a.*, list({'principle': l.principle_id, 'question': l.question_id, 'task': l.task, 'status': l.status,
                     'margin': l.margin, 'consistent': l.consistent, 'position_offset': l.position_offset,
                     'rollouts': l.rollouts, 'judge': l.judge, 'source': l.source, 'detail': l.detail}
                    ORDER BY l.principle_id, l.question_id) FILTER (l.label_id IS NOT NULL) AS labels
    FROM (%s) a LEFT JOIN labels l
    ON l.ordinal = a.ordinal AND l.attempt = a.attempt AND list_contains(l.rollouts, a."index")
    GROUP BY ALL"""
"""Rows with their labels."""
_LATEST = f"SELECT * FROM rollouts QUALIFY row_number() OVER (PARTITION BY {_KEY} ORDER BY created_ns DESC) = 1"
"""A group that was generated again after a resume has its numbers twice: the later row counts."""


def extreme(store: RunStore, *, best: bool, number: int = 10) -> list[Row]:
    """Trained rollouts with the highest or lowest reward, one for each prompt; of equal ones the latest."""
    order = "DESC" if best else "ASC"
    chosen = (
        f"SELECT * FROM ({_LATEST}) WHERE isfinite(reward) AND step IS NOT NULL "
        f"QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY reward {order}, step DESC, {_KEY}) = 1 "
        f"ORDER BY reward {order}, step DESC, {_KEY} LIMIT {number}"
    )
    rows = store.rows(_WITH_LABELS % chosen)
    ranked = sorted(rows, key=lambda row: (-row["reward"] if best else row["reward"], -row["step"], row["ordinal"]))
    return [_shown(row) for row in ranked]


def tied(store: RunStore, *, best: bool) -> int:
    """How many trained rollouts share the highest or lowest reward: a clipped reward has many."""
    most = "max" if best else "min"
    return int(
        store.value(
            f"SELECT count(*) FROM ({_LATEST}) WHERE step IS NOT NULL AND reward = (SELECT {most}(reward) FROM "
            f"rollouts "
            "WHERE isfinite(reward) AND step IS NOT NULL)"
        )
        or 0
    )


def fooled(store: RunStore, *, number: int = 10) -> list[Row]:
    """Audited rollouts that the judge liked and the auditor did not, one for each text. The gap is in standard
    deviations: each judge's rewards have a scale of their own."""
    chosen = f"""
        SELECT r.*, u.gold, u.reward AS proxy, u.gold_margins,
               (u.reward - m.reward) / m.reward_std - (u.gold - m.gold) / m.gold_std AS gap
        FROM ({_LATEST}) r JOIN audits u USING ({_KEY}), (
            SELECT avg(reward) AS reward, greatest(stddev_pop(reward), 1e-9) AS reward_std,
                   avg(gold) AS gold, greatest(stddev_pop(gold), 1e-9) AS gold_std
            FROM audits WHERE reward IS NOT NULL AND gold IS NOT NULL) m
        WHERE u.reward > m.reward AND u.gold < m.gold
        QUALIFY row_number() OVER (PARTITION BY text ORDER BY gap DESC, {_KEY}) = 1
        ORDER BY gap DESC LIMIT {number}"""
    rows = store.rows(_WITH_LABELS % chosen)
    found = []
    for row in sorted(rows, key=lambda row: -row["gap"]):
        gold = json.loads(row["gold_margins"])
        found.append(_shown(row) | {"gold": row["gold"], "gap": row["gap"], "gold_margins": gold})
    return found


def heldout_pairs(store: RunStore) -> list[Row]:
    """Held-out answers before and after, the largest change of the score first."""
    rows = store.rows(
        "SELECT b.prompt_id, b.prompt, b.tags, b.answer AS before, a.answer AS after, b.scores AS scores_before, "
        "a.scores AS scores_after, a.score - b.score AS change FROM heldout b JOIN heldout a USING (prompt_id) "
        "WHERE b.moment = 'before' AND a.moment = 'after' ORDER BY abs(change) DESC NULLS LAST, b.prompt_id"
    )
    for row in rows:
        row["prompt"] = turns(row["prompt"])
        row["scores_before"], row["scores_after"] = json.loads(row["scores_before"]), json.loads(row["scores_after"])
    return rows


def most_changed(pairs: Sequence[Row], *, better: bool, number: int = 10) -> list[Row]:
    """The first of `heldout_pairs` whose score rose, or fell."""
    changed = [row for row in pairs if row["change"] and (row["change"] > 0) == better]
    return [_cut(row, "before", "after") for row in changed[:number]]


def telling_words(pairs: Sequence[Row], principle: str) -> list[tuple[str, float, float]]:
    """Words and phrases of up to five words whose share of answers changed most, among the prompts to which a principle
    applies: the phrase, its share before, and after. A phrase stands for the shorter ones inside it that changed as
    much."""
    applied = [row for row in pairs if principle in row["scores_after"] and principle in row["scores_before"]]
    if not applied:
        return []
    before, after = Counter[str](), Counter[str]()
    for row in applied:
        before.update(_phrases(row["before"]))
        after.update(_phrases(row["after"]))
    changes = {phrase: (after[phrase] - before[phrase]) / len(applied) for phrase in before | after}
    ranked = sorted(changes, key=lambda one: (-abs(changes[one]) - 0.02 * one.count(" "), one))
    told: list[str] = []
    for phrase in ranked:
        if abs(changes[phrase]) <= 0.02 or len(told) == WORDS:
            break
        if not any(f" {phrase} " in f" {one} " or f" {one} " in f" {phrase} " for one in told):
            told.append(phrase)
    return [(phrase, before[phrase] / len(applied), after[phrase] / len(applied)) for phrase in told]


def turns(text: str | None) -> list[dict[str, str]]:
    """The messages of a prompt as a list of {role, content}; a text that is no such list is one message of a user."""
    try:
        found = json.loads(text or "")
    except ValueError:
        found = None
    if isinstance(found, list) and all(isinstance(turn, Mapping) for turn in found):
        return [{"role": str(turn.get("role", "")), "content": str(turn.get("content", ""))} for turn in found]
    return [{"role": "user", "content": text or ""}]


def _shown(row: Mapping[str, Any]) -> Row:
    keys = ("ordinal", "attempt", "index", "prompt_id", "text", "reward", "advantage", "step", "tags", "versions")
    found = {key: row[key] for key in keys} | {"gold": None, "gold_margins": {}}
    return _cut(found | {"prompt": turns(row["prompt"]), "labels": row["labels"] or []}, "text")


def _cut(row: Row, *names: str) -> Row:
    cut = {name: f"{row[name][:TEXT_CHARACTERS]} …" for name in names if len(row[name] or "") > TEXT_CHARACTERS}
    return row | cut


def _phrases(text: str) -> set[str]:
    words = [word for part in text.split() if (word := part.strip(".,;:!?\"'()*").lower())]
    return {
        " ".join(words[n : n + size]) for size in range(1, LONGEST_PHRASE + 1) for n in range(len(words) - size + 1)
    }
