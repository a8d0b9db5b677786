"""Reads prompts with answers to label from a file, and reports rows that cannot be labelled.

A row is one of

    {"prompt": text or messages, "answers": [text, text, …], "id": …, "tags": […]}
    {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}
    {"chosen": messages, "rejected": messages}      two whole conversations: the prompt is their common beginning

`completions` and `responses` are other names of `answers`. Messages may be written as JSON, as CSV files require. No
row is dropped silently: a row that cannot be labelled is returned with the reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solon.engines.thinking import without_old_thoughts, without_thought
from solon.errors import InputError, short
from solon.files.data_config import ReadConfig
from solon.files.prompts import is_text, json_note, parse_prompt, with_messages
from solon.files.rows import excerpt_of, folded, read_rows
from solon.records import Group, Prompt, Rollout

_log = logging.getLogger(__name__)
ANSWER_COLUMNS = ("answers", "completions", "responses")
PAIR_COLUMNS = ("chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """A prompt with answers to be labelled."""

    row_id: str
    """From the column `id`; without one, a digest of prompt and answers."""
    number: int
    """Line or row in the file, from 1; unique over several files."""
    prompt: Prompt
    answers: tuple[str, ...]
    place: str = ""
    """The place for people: "line 3", "row 3 of b.parquet"."""

    def as_group(self) -> Group:
        """The row as a group, for a labeler."""
        return text_group(self.number, self.prompt, self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """A row that cannot be labelled."""

    number: int
    row_id: str
    reason: str
    excerpt: str = ""
    place: str = ""
    """The place for people: "line 3", "row 3 of b.parquet"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFile:
    """The content of one file or folder."""

    rows: tuple[AnswerRow, ...]
    unanswered: tuple[AnswerRow, ...]
    """Prompts without any answer: a policy may write them."""
    skipped: tuple[SkippedRow, ...]
    notes: tuple[str, ...] = ()
    """Notes for the user."""


def first_rows(path: str | Path, most: int, *, skip: int = 0, read: ReadConfig | None = None) -> list[AnswerRow]:
    """At most `most` usable rows of a file of prompts, with or without answers, in its order. Raises InputError as
    `load_answers`.

    skip: begin behind so many rows, and behind the last row with the first one again. read: which column and split.
    """
    file = load_answers(path, least=1, read=read)
    if file.skipped:
        first = file.skipped[0]
        _log.warning("%s: %d rows are left out, the first: %s: %s", path, len(file.skipped), first.place, first.reason)
    rows = sorted((*file.rows, *file.unanswered), key=lambda row: row.number)
    start = skip % len(rows)
    return (rows[start:] + rows[:start])[:most]


def load_answers(path: str | Path, *, least: int, read: ReadConfig | None = None) -> AnswerFile:
    """Read rows; a row with answers, but fewer than `least`, is skipped. Raises InputError when the file cannot be
    read or contains no usable row."""
    read = read or ReadConfig()
    rows: list[AnswerRow] = []
    unanswered: list[AnswerRow] = []
    skipped: list[SkippedRow] = []
    known: dict[str, AnswerRow] = {}
    from_json = 0
    for place, raw in read_rows(path, what="answer", read=read):
        raw, is_json = with_messages(raw, read.column, *PAIR_COLUMNS) if read.json_messages else (raw, False)
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
        from_json += is_json
        (rows if row.answers else unanswered).append(row)
    if not rows and not unanswered:
        reasons = folded((s.place, s.reason) for s in skipped)
        found = f"all {len(skipped)} rows cannot be used ({reasons})" if skipped else "it is empty"
        raise InputError(f"answer file {path} has nothing to label: {found}; expected `prompt` and `answers`")
    notes = (json_note(path, from_json),) if from_json else ()
    return AnswerFile(rows=tuple(rows), unanswered=tuple(unanswered), skipped=tuple(skipped), notes=notes)


def parse_row(number: int, raw: Any, *, column: str = "prompt", place: str = "") -> AnswerRow:
    """Parse one row. Raises ValueError with the reason if it is invalid."""
    raw = with_prompt(raw, column)
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


def with_prompt(raw: Any, column: str) -> Any:
    """The row with the common beginning of its two conversations as prompt, if it has no prompt of its own. Raises
    ValueError."""
    if not isinstance(raw, dict) or column in raw or any(raw.get(name) is not None for name in ANSWER_COLUMNS):
        return raw
    pair = [raw.get(name) for name in PAIR_COLUMNS]
    if not all(isinstance(turns, list | tuple) and turns for turns in pair):
        if all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"has no `{column}`, and `chosen` and `rejected` are plain text; add a column `{column}`, or "
                f"give `chosen` "
                "and `rejected` as lists of messages {role, content}"
            )
        return raw
    chosen, rejected = (list(turns) for turns in pair if turns is not None)
    both = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = [a for a, b in itertools.takewhile(lambda turns: turns[0] == turns[1], both)]
    if chosen[0] != rejected[0]:
        raise ValueError(f"has no `{column}`, and `chosen` and `rejected` begin with different turns")
    for name, turns in zip(PAIR_COLUMNS, (chosen, rejected), strict=True):
        if len(turns) != len(shared) + 1:
            raise ValueError(
                f"has no `{column}`, and `{name}` has {len(turns) - len(shared)} turns after the {len(shared)} that "
                "both conversations begin with, expected one, the answer"
            )
        if not isinstance(turns[-1], dict) or turns[-1].get("role") != "assistant":
            raise ValueError(f"has no `{column}`, and `{name}` does not end with a turn of the assistant")
    if not shared:
        raise ValueError(f"has no `{column}`, and `chosen` and `rejected` hold only an answer")
    return {**raw, column: shared}


def text_group(ordinal: int, prompt: Prompt, answers: Sequence[str]) -> Group:
    """Texts that were not generated here as a group for labelers, with thoughts separated from answers."""
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
