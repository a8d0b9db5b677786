"""Groups that are generated or labelled but not trained yet, as files of a checkpoint.

`held.parquet` has one row per rollout, `feedback.jsonl` one line per labelled group. Both are exact to the bit: a group
that was read back is trained exactly as before.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from solon.errors import InputError
from solon.files.prompts import parse_messages
from solon.records import Feedback, Group, Message, Prompt, Rollout
from solon.runs.label_records import compact, nested
from solon.runs.tables import arrow_table, rollout_rows

GROUPS = "held.parquet"
FEEDBACK = "feedback.jsonl"

Held = tuple[Group, Feedback | None]

_feedback = TypeAdapter(Feedback)
_object = TypeAdapter(dict[str, Any])


def write_held(folder: Path, held: Iterable[Held]) -> None:
    """Write both files, without rows if there are no groups."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    lines = []
    for group, feedback in held:
        extra = {"prompt_token_ids": group.prompt_token_ids.tolist()}
        rows += [row | extra for row in rollout_rows(group)]
        if feedback is not None:
            lines.append(_feedback_line(feedback))
    if rows:
        pq.write_table(arrow_table("held", rows), folder / GROUPS)
    (folder / FEEDBACK).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_held(folder: Path) -> dict[int, Held]:
    """Groups by ordinal. Raises InputError when the files do not have the form of `write_held`."""
    try:
        groups = _read_groups(folder / GROUPS) if (folder / GROUPS).exists() else {}
        found: dict[int, Feedback] = {}
        for line in (folder / FEEDBACK).read_text(encoding="utf-8").splitlines():
            feedback = _read_feedback(line)
            found[feedback.ordinal] = feedback
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"the held groups in {folder} cannot be read ({error!r}); resume from another checkpoint"
        ) from None
    return {ordinal: (group, found.get(ordinal)) for ordinal, group in groups.items()}


def _feedback_line(feedback: Feedback) -> str:
    """JSON with the labels as flat records: the keys of labels/*.parquet, without those at their default."""
    record = {
        "ordinal": feedback.ordinal,
        "attempt": feedback.attempt,
        "rewards_G": feedback.rewards_G,
        "labels": [compact(label) for label in feedback.labels],
    }
    return _object.dump_json(record).decode()


def _read_feedback(line: str) -> Feedback:
    record = _object.validate_json(line)
    return _feedback.validate_python(record | {"labels": [nested(label) for label in record["labels"]]})


def _read_groups(path: Path) -> dict[int, Group]:
    import pyarrow.parquet as pq

    by_ordinal: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in pq.read_table(path).to_pylist():
        by_ordinal[row["ordinal"]].append(row)
    return {ordinal: _group(sorted(rows, key=lambda row: row["index"])) for ordinal, rows in by_ordinal.items()}


def _group(rows: list[Mapping[str, Any]]) -> Group:
    first = rows[0]
    return Group(
        ordinal=first["ordinal"],
        attempt=first["attempt"],
        prompt=Prompt(
            prompt_id=first["prompt_id"],
            messages=parse_messages(json.loads(first["prompt"])),
            tags=tuple(first["tags"]),
        ),
        prompt_token_ids=np.array(first["prompt_token_ids"], np.int32),
        rollouts=tuple(
            Rollout(
                token_ids=np.array(row["token_ids"], np.int32),
                logprobs=np.array(row["logprobs"], np.float32),
                segments=tuple(zip(row["versions"], row["version_tokens"], strict=True)),
                finish_reason=row["finish_reason"],
                text=row["text"],
                # Checkpoints of earlier versions lack these three.
                thought=row.get("thought") or "",
                is_cut=bool(row.get("is_cut")),
            )
            for row in rows
        ),
        shown=tuple(Message(**turn) for turn in json.loads(first.get("shown") or "[]")),
    )
