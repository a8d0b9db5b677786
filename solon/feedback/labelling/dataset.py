"""Prompts with answers to be labelled, from a file; and what is wrong with the rows that cannot be.

A row is one of

    {"prompt": text or messages, "answers": [text, text, …], "id": …, "tags": […]}
    {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}

`completions` and `responses` are other names of `answers`. No row is dropped in silence: a row that cannot be labelled
is returned with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solon.data_config import ReadConfig
from solon.engines.thinking import without_old_thoughts, without_thought
from solon.errors import InputError, short
from solon.prompts import is_text, parse_prompt
from solon.records import Group, Prompt, Rollout
from solon.rows import excerpt_of, read_rows

ANSWER_COLUMNS = ("answers", "completions", "responses")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """A prompt and the answers to it, waiting to be labelled."""

    row_id: str
    """From the column `id`; without one, a digest of prompt and answers."""
    number: int
    """Line or row in the file, from 1; of several files, a number of its own."""
    prompt: Prompt
    answers: tuple[str, ...]
    place: str = ""
    """As people say it: "line 3", "row 3 of b.parquet"."""

    def as_group(self) -> Group:
        """In the shape that a labeler takes."""
        return text_group(self.number, self.prompt, self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """A row that cannot be labelled."""

    number: int
    row_id: str
    reason: str
    excerpt: str = ""
    place: str = ""
    """As people say it: "line 3", "row 3 of b.parquet"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFile:
    """What was read from one place."""

    rows: tuple[AnswerRow, ...]
    unanswered: tuple[AnswerRow, ...]
    """Prompts without any answer: a policy may write them."""
    skipped: tuple[SkippedRow, ...]


def load_answers(path: str | Path, *, least: int, read: ReadConfig | None = None) -> AnswerFile:
    """Read rows; one with answers, but fewer than `least`, is skipped. Raises InputError when the file cannot be
    read, or nothing in it can be used."""
    read = read or ReadConfig()
    rows: list[AnswerRow] = []
    unanswered: list[AnswerRow] = []
    skipped: list[SkippedRow] = []
    known: dict[str, AnswerRow] = {}
    for place, raw in read_rows(path, what="answer", read=read):
        try:
            row = parse_row(place.ordinal, raw, column=read.column, place=str(place))
            _refuse_repeated(row, known)
            if row.answers and len(row.answers) < least:
                raise ValueError(f"has {len(row.answers)} answer, expected at least {least} to compare")
        except ValueError as error:
            reason, shown = str(error), excerpt_of(raw)
            skipped.append(
                SkippedRow(
                    number=place.ordinal, row_id=_claimed_id(raw), reason=reason, excerpt=shown, place=str(place)
                )
            )
            continue
        known[row.row_id] = row
        (rows if row.answers else unanswered).append(row)
    if not rows and not unanswered:
        reasons = "; ".join(f"{s.place}: {s.reason}" for s in skipped[:5])
        found = f"all {len(skipped)} rows cannot be used ({reasons})" if skipped else "it is empty"
        raise InputError(f"answer file {path} has nothing to label: {found}; expected `prompt` and `answers`")
    return AnswerFile(rows=tuple(rows), unanswered=tuple(unanswered), skipped=tuple(skipped))


def parse_row(number: int, raw: Any, *, column: str = "prompt", place: str = "") -> AnswerRow:
    """One row. Raises ValueError that says what is wrong with it."""
    prompt = parse_prompt(raw, column=column)
    answers = _answers(raw)
    given = raw.get("id")
    if given is not None and not isinstance(given, str | int):
        raise ValueError(f"`id` is a {type(given).__name__}, expected text or a whole number")
    return AnswerRow(
        row_id=str(given) if given is not None else _digest(prompt, answers),
        number=number,
        prompt=prompt,
        answers=answers,
        place=place or f"line {number}",
    )


def text_group(ordinal: int, prompt: Prompt, answers: Sequence[str]) -> Group:
    """Texts that were not generated here, in the shape that labelers take: thoughts apart from answers."""
    nothing = np.zeros(0, np.int32)
    rollouts = tuple(
        Rollout(
            token_ids=nothing,
            logprobs=np.zeros(0, np.float32),
            segments=((0, 0),),
            finish_reason="stop",
            text=read.text,
            thought=read.thought,
        )
        for read in map(without_thought, answers)
    )
    shown = without_old_thoughts(prompt.messages)
    return Group(
        ordinal=ordinal,
        attempt=0,
        prompt=prompt,
        prompt_token_ids=nothing,
        rollouts=rollouts,
        shown=shown if shown != prompt.messages else (),
    )


def _answers(raw: dict[str, Any]) -> tuple[str, ...]:
    found = [column for column in ANSWER_COLUMNS if raw.get(column) is not None]
    if found:
        values = raw[found[0]]
        if not isinstance(values, list | tuple):
            raise ValueError(f"`{found[0]}` is a {type(values).__name__}, expected a list of texts")
    elif raw.get("chosen") is not None or raw.get("rejected") is not None:
        values = [raw.get("chosen"), raw.get("rejected")]
    else:
        return ()
    return tuple(_answer(value) for value in values)


def _answer(value: Any) -> str:
    """A text, or the last turn of a conversation."""
    if isinstance(value, list | tuple) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise ValueError(f"has the answer {short(value)}, expected text or messages")
    if not is_text(value):
        raise ValueError("an answer holds half a character (a lone surrogate), expected text")
    return value


def _refuse_repeated(row: AnswerRow, known: dict[str, AnswerRow]) -> None:
    earlier = known.get(row.row_id)
    if earlier is None:
        return
    same = (earlier.prompt, earlier.answers) == (row.prompt, row.answers)
    raise ValueError(
        f"repeats {earlier.place}"
        if same
        else f"has the id {row.row_id!r} of {earlier.place}, but other texts; give each row its own id"
    )


def _claimed_id(raw: Any) -> str:
    claimed = raw.get("id") if isinstance(raw, dict) else None
    return str(claimed) if isinstance(claimed, str | int) else ""


def _digest(prompt: Prompt, answers: Sequence[str]) -> str:
    whole = json.dumps([prompt.prompt_id, *answers])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]
