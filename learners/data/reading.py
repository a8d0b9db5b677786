"""Reads preference pairs and demonstrations from files, in the columns that `solon label` and TRL write.

A preference row has `prompt`, `chosen` and `rejected` (texts or messages), and perhaps `soft_label`, the probability
that the chosen answer is the better one, `weight` and `tags`. A demonstration has `prompt` and `completion` (also
`answer` or `chosen`), or `messages` that end with an answer. A rating has an answer as a demonstration has, and `good`,
the probability that it is good, or TRL's `label`, true or false. No row is dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.direct.pairs import AnswerPair, RatedAnswer
from solon.engines.tokens import ChatTokenizer
from solon.engines.turns import Tokens, encode_turn
from solon.errors import InputError, PromptRefusedError, short
from solon.feedback.labelling.dataset import parse_row, with_prompt
from solon.files.prompts import with_messages
from solon.files.rows import Place, folded, read_rows

TURNS = ("prompt", "messages", "chosen", "rejected", "completion", "answer")
"""Columns that may hold messages, in CSV as the text of a JSON list."""
ANSWERS = ("completion", "answer", "chosen")
"""Columns of a demonstration's answer, the first that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt with an answer to imitate."""

    prompt: Tokens
    answer: Tokens
    """With the token that ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """Usable pairs of a file, and why others are not."""

    pairs: tuple[AnswerPair, ...]
    prompts: tuple[str, ...]
    """Identifies the prompt of each pair."""
    tags: tuple[tuple[str, ...], ...]
    """Tags of each pair."""
    skipped: tuple[tuple[str, str], ...]
    """Place and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingFile:
    """Usable ratings of a file, and why others are not."""

    rows: tuple[RatedAnswer, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationFile:
    """Usable demonstrations of a file, and why others are not."""

    rows: tuple[Demonstration, ...]
    skipped: tuple[tuple[str, str], ...]


def _each(path: str | Path, *, what: str) -> Iterator[tuple[Place, Any]]:
    """Rows of a file, conversations in cells of CSV read as such."""
    for place, raw in read_rows(path, what=what):
        yield place, with_messages(raw, *TURNS)[0]


def report_skipped(skipped: Sequence[tuple[str, str]]) -> int:
    """Print why rows are left out, for the log of a stage; returns their number."""
    if skipped:
        print(f"{len(skipped)} rows left out: {folded(iter(skipped))}", flush=True)
    return len(skipped)


def read_pairs(path: str | Path, tokenizer: ChatTokenizer, *, max_tokens: int, soft: bool = True) -> PairFile:
    """Preference pairs as token ids. soft: use `soft_label`; otherwise every chosen answer is certainly better.

    max_tokens: longest conversation; longer ones are skipped, since a cut answer has no end. Raises InputError when the
    file cannot be read or holds no usable pair.
    """
    pairs, prompts, tags, skipped = [], [], [], []
    for place, raw in _each(path, what="preference"):
        try:
            row = parse_row(place.ordinal, raw, place=str(place))
            if not isinstance(raw, dict) or len(row.answers) != 2:
                raise ValueError("has no `chosen` and `rejected`")
            chosen, rejected = (_turn(tokenizer, row.prompt.messages, text, max_tokens) for text in row.answers)
            pair = AnswerPair(
                prompt=chosen[0],
                first=chosen[1],
                second=rejected[1],
                p=_number(raw, "soft_label", 1.0) if soft else 1.0,
                weight=_number(raw, "weight", 1.0),
            )
        except (ValueError, PromptRefusedError) as error:
            skipped.append((str(place), str(error)))
            continue
        pairs.append(pair)
        prompts.append(row.prompt.prompt_id)
        tags.append(tuple(row.prompt.tags))
    if not pairs:
        raise InputError(_nothing(path, "preference pair", "`prompt`, `chosen` and `rejected`", skipped))
    return PairFile(pairs=tuple(pairs), prompts=tuple(prompts), tags=tuple(tags), skipped=tuple(skipped))


def read_demonstrations(path: str | Path, tokenizer: ChatTokenizer, *, max_tokens: int) -> DemonstrationFile:
    """Demonstrations as token ids; conversations longer than `max_tokens` are skipped. Raises InputError when the file
    cannot be read or holds no usable row."""
    rows, skipped = [], []
    for place, raw in _each(path, what="demonstration"):
        try:
            row = parse_row(place.ordinal, _as_row(raw), place=str(place))
            prompt, answer = _turn(tokenizer, row.prompt.messages, row.answers[0], max_tokens)
        except (ValueError, PromptRefusedError) as error:
            skipped.append((str(place), str(error)))
            continue
        rows.append(Demonstration(prompt=prompt, answer=answer))
    if not rows:
        raise InputError(_nothing(path, "demonstration", "`prompt` and `completion`, or `messages`", skipped))
    return DemonstrationFile(rows=tuple(rows), skipped=tuple(skipped))


def read_ratings(path: str | Path, tokenizer: ChatTokenizer, *, max_tokens: int) -> RatingFile:
    """Rated answers as token ids; conversations longer than `max_tokens` are skipped. Raises InputError when the file
    cannot be read or holds no usable row."""
    rows, skipped = [], []
    for place, raw in _each(path, what="rating"):
        try:
            row = parse_row(place.ordinal, _as_row(raw), place=str(place))
            prompt, answer = _turn(tokenizer, row.prompt.messages, row.answers[0], max_tokens)
            good = _good(raw)
            rows.append(RatedAnswer(prompt=prompt, answer=answer, good=good, weight=_number(raw, "weight", 1.0)))
        except (ValueError, PromptRefusedError) as error:
            skipped.append((str(place), str(error)))
    if not rows:
        raise InputError(_nothing(path, "rating", "`prompt`, `completion` and `good` or `label`", skipped))
    return RatingFile(rows=tuple(rows), skipped=tuple(skipped))


def _good(raw: Any) -> float:
    """The probability that an answer is good. Raises ValueError."""
    column = "good" if raw.get("good") is not None else "label"
    value = raw.get(column)
    truth = {"true": 1.0, "false": 0.0}.get(str(value).strip().lower())
    if truth is not None:
        return truth
    if column == "label" and str(value).strip() not in ("0", "1"):
        raise ValueError(f"has the label {value!r} and no `good`, expected true or false, or a probability in `good`")
    return _number(raw, column, 1.0)


def _turn(tokenizer: ChatTokenizer, messages: Sequence[Any], answer: str, max_tokens: int) -> tuple[Tokens, Tokens]:
    if not answer.strip():
        raise ValueError("has an empty answer")
    prompt, ids = encode_turn(tokenizer, messages, answer)
    if len(prompt) + len(ids) > max_tokens:
        raise ValueError(f"has {len(prompt) + len(ids)} tokens, expected at most {max_tokens} (max_tokens)")
    return prompt, ids


def _as_row(raw: Any) -> Any:
    """A demonstration in the columns of an answer row. Raises ValueError."""
    if not isinstance(raw, Mapping):
        return raw
    turns = raw.get("messages")
    if isinstance(turns, list | tuple) and turns:
        if not isinstance(turns[-1], Mapping) or turns[-1].get("role") != "assistant" or len(turns) < 2:
            raise ValueError("has `messages` that do not end with an answer of the assistant")
        return {"prompt": list(turns[:-1]), "answers": [turns[-1].get("content")]}
    column = next((name for name in ANSWERS if raw.get(name) is not None), None)
    if column is None:
        raise ValueError("has no `completion`")
    answer = raw[column]
    if isinstance(answer, list | tuple) and answer and isinstance(answer[-1], Mapping):
        answer = answer[-1].get("content")
    given = with_prompt(dict(raw), "prompt")
    return {"prompt": given.get("prompt"), "answers": [answer]}


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    """A number, also as the text of a CSV cell; an empty one is the default. Raises ValueError."""
    value = raw.get(name)
    if value is None or value == "":
        return default
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has the {name} {short(value)}, expected a number") from None


def _nothing(path: str | Path, what: str, columns: str, skipped: Sequence[tuple[str, str]]) -> str:
    reasons: Iterator[tuple[str, str]] = iter(skipped)
    why = f"all {len(skipped)} rows cannot be used ({folded(reasons)})" if skipped else "it is empty"
    return f"{what} file {path} holds no {what}: {why}; expected {columns}"
