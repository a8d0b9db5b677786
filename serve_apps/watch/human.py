"""Labels of people: appended to `human-labels.jsonl` of the run, and never trained on.

A correction is a new line; the last line of a person about a label counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from solon.errors import InputError, RunFailedError
from solon.files.json_text import json_text
from solon.report.run_answers import turns
from solon.report.store import HUMAN, RunStore

SURE = 6.0
"""Log-odds of a person's verdict, nats: 0.9975."""
ALONE = {"yes": SURE, "no": -SURE, "flag": None, "withdrawn": None}
COMPARED = {"first": SURE, "second": -SURE, "tie": 0.0, "flag": None, "withdrawn": None}
MOST_REASON = 4000


def verdicts(task: str) -> Mapping[str, float | None]:
    """Verdicts of a person about a label of this task, and their margins."""
    return COMPARED if task == "pairwise" else ALONE


def add_label(run: Path, label: Mapping[str, Any], *, verdict: str, reason: str, who: str) -> dict[str, Any]:
    """Append a person's label about a label of the judge. It is on the disk when this returns.

    Raises InputError for another verdict or a long reason, RunFailedError when the file cannot be written.
    """
    allowed = verdicts(str(label["task"]))
    if verdict not in allowed:
        raise InputError(f"got the verdict {verdict!r}, expected one of {', '.join(allowed)}")
    if len(reason) > MOST_REASON:
        raise InputError(f"the reason has {len(reason)} characters, expected at most {MOST_REASON}")
    created = time.time_ns()
    record = {
        "label_id": hashlib.sha256(f"{label['label_id']}\0{who}\0{created}".encode()).hexdigest()[:26],
        "parent_label_id": label["label_id"],
        "source": "human",
        "verdict": verdict,
        "margin": allowed[verdict],
        "reason": reason,
        "who": who,
        "created_ns": created,
        **{key: label[key] for key in ("ordinal", "attempt", "rollouts", "task", "principle_id", "question_id")},
    }
    line = (json_text(record) + "\n").encode("utf-8", "replace")
    try:
        file = os.open(run / HUMAN, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line  # the last one was cut: this one must not become a part of it
            if os.write(file, line) != len(line):
                raise OSError(28, "the disk is full")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise RunFailedError(f"{run / HUMAN} cannot be written: {error.strerror}; the label is not kept") from None
    return record


def standing(store: RunStore) -> list[dict[str, Any]]:
    """The labels of people that count: the last of each person about each label, without withdrawn ones."""
    rows = store.rows(
        "SELECT row FROM human QUALIFY row_number() OVER (PARTITION BY parent_label_id, who "
        "ORDER BY created_ns DESC) = 1 ORDER BY created_ns"
    )
    return [row for found in rows if (row := json.loads(found["row"])).get("verdict") != "withdrawn"]


def has_label(store: RunStore, label_id: str, who: str) -> bool:
    """Whether this person's label about a label stands."""
    return any(row["parent_label_id"] == label_id and row["who"] == who for row in standing(store))


def gold_pairs(store: RunStore) -> Iterator[dict[str, Any]]:
    """Pairs with a known better answer, in the form that `solon judges compare` and `solon judges calibrate` read: each
    comparison that a person decided, and each answer under `yes` with each under `no` of one prompt and principle."""
    alone: dict[tuple[int, int, str, str], dict[str, list[int]]] = {}
    for row in standing(store):
        key = (row["ordinal"], row["attempt"], row["principle_id"], row["question_id"])
        if row["verdict"] in ("first", "second", "tie"):
            expect = {"first": "a", "second": "b", "tie": "tie"}[row["verdict"]]
            yield from _pair(store, key, *row["rollouts"], expect=expect)
        elif row["verdict"] in ("yes", "no"):
            alone.setdefault(key, {}).setdefault(row["verdict"], []).append(row["rollouts"][0])
    for key, found in alone.items():
        for good in found.get("yes", ()):
            for bad in found.get("no", ()):
                yield from _pair(store, key, good, bad, expect="a")


def _pair(
    store: RunStore, key: tuple[int, int, str, str], first: int, second: int, *, expect: str
) -> Iterator[dict[str, Any]]:
    ordinal, attempt, principle, _ = key
    rows = store.rows(
        'SELECT "index", text, prompt, tags FROM rollouts WHERE ordinal = ? AND attempt = ?', [ordinal, attempt]
    )
    texts = {row["index"]: row for row in rows}
    if first in texts and second in texts and texts[first]["text"] != texts[second]["text"]:
        yield {
            "prompt": turns(texts[first]["prompt"]),
            "tags": texts[first]["tags"] or [],
            "a": texts[first]["text"],
            "b": texts[second]["text"],
            "expect": expect,
            "principle": principle,
        }
