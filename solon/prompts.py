"""Prompts from a file: JSONL, Parquet or a saved Hugging Face dataset, column `prompt` (text or messages).

Broken rows are counted and named with their line numbers; above one percent, or when none is left, the file
is refused before anything starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from solon.errors import InputError, nearest, short
from solon.records import Message, Prompt
from solon.rows import Refused, excerpt_of, read_rows

MAX_BAD_SHARE = 0.01
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """Prompts read from one place, and what was wrong with the rest."""

    path: str
    prompts: tuple[Prompt, ...]
    bad: tuple[tuple[int, str], ...]
    """(line or row number from 1, what is wrong)."""
    excerpts: tuple[str, ...] = ()
    """Of the bad rows, in the same order."""

    def refused(self) -> tuple[Refused, ...]:
        """The bad rows, for the quarantine."""
        return tuple(
            Refused(line=line, reason=reason, excerpt=excerpt)
            for (line, reason), excerpt in zip(self.bad, self.excerpts, strict=True)
        )

    def warning(self) -> str | None:
        """One line about skipped rows, or None."""
        return f"{self.path}: skipped {_describe(self.bad)}" if self.bad else None


def load_prompts(path: str | Path) -> PromptFile:
    """Read and check prompts. Raises InputError when the file cannot be used."""
    path = Path(path)
    prompts: list[Prompt] = []
    bad: list[tuple[int, str]] = []
    excerpts: list[str] = []
    try:
        if not path.exists():
            raise InputError(f"prompt file {path} does not exist; check the path")
        for number, row in read_rows(path, what="prompt"):
            try:
                prompts.append(parse_prompt(row))
            except ValueError as error:
                bad.append((number, str(error)))
                excerpts.append(excerpt_of(row))
    except OSError as error:
        raise InputError(f"prompt file {path} cannot be read: {error}") from None
    if not prompts:
        found = f"all {len(bad)} rows are broken: {_describe(bad)}" if bad else "it is empty"
        raise InputError(f"prompt file {path} has no usable prompt, {found}; expected a column `prompt`")
    if len(bad) > MAX_BAD_SHARE * (len(bad) + len(prompts)):
        raise InputError(
            f"prompt file {path}: {len(bad)} of {len(bad) + len(prompts)} rows are broken, more than "
            f"{MAX_BAD_SHARE:.0%}: {_describe(bad)}; mend or remove them"
        )
    return PromptFile(path=str(path), prompts=tuple(prompts), bad=tuple(bad), excerpts=tuple(excerpts))


def parse_prompt(row: Any) -> Prompt:
    """A prompt from one row. Raises ValueError that says what is wrong.

    >>> parse_prompt({"prompt": "what color is the sky ?"}).messages[0].role
    'user'
    """
    if isinstance(row, Exception):
        raise ValueError(str(row))
    if not isinstance(row, dict):
        raise ValueError(f"holds a {type(row).__name__}, expected an object with `prompt`")
    if "prompt" not in row:
        hint = next((hint for key in row if (hint := nearest(str(key), ["prompt"]))), "")
        raise ValueError(f"has no `prompt`, only {short(sorted(map(str, row)))}{hint}")
    messages = parse_messages(row["prompt"])
    tags = row.get("tags")
    if tags is None:
        tags = []
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) and is_text(tag) for tag in tags):
        raise ValueError(f"`tags` is {_kind(tags)}, expected a list of words")
    return Prompt(prompt_id=prompt_id(messages), messages=messages, tags=tuple(tags))


def prompt_id(messages: Sequence[Message]) -> str:
    """Digest of a conversation, the same in every run."""
    canonical = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PromptSource:
    """Prompts by dispatch number: every epoch is a permutation of its own, fixed by the seed.

    `source[n]` depends on nothing but the seed and n, so a run that resumes, or an attempt that is repeated,
    gets the same prompt.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int) -> None:
        self._prompts = prompts
        self._order = lru_cache(maxsize=4)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(prompts)))

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, ordinal: int) -> Prompt:
        epoch, index = divmod(ordinal, len(self._prompts))
        return self._prompts[int(self._order(epoch)[index])]


def parse_messages(value: Any) -> tuple[Message, ...]:
    """A conversation from text or a list of {role, content}. Raises ValueError that says what is wrong."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"`prompt` is {_kind(value)}, expected text or a list of messages")
    messages = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise ValueError("`prompt` has a turn that is not {role, content}")
        if turn.get("role") not in ROLES:
            raise ValueError(f"`prompt` has the role {short(turn.get('role'))}, expected one of {', '.join(ROLES)}")
        if not is_text(turn["content"]):
            raise ValueError("`prompt` holds half a character (a lone surrogate), expected text")
        messages.append(Message(role=turn["role"], content=turn["content"]))
    if messages[-1].role != "user":
        raise ValueError("`prompt` does not end with a user turn")
    if not messages[-1].content.strip():
        raise ValueError("`prompt` is empty")
    return tuple(messages)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can spell half of a surrogate pair, no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(bad: Iterable[tuple[int, str]], most: int = 5) -> str:
    bad = list(bad)
    shown = "; ".join(f"line {number}: {what}" for number, what in bad[:most])
    return f"{len(bad)} row(s) ({shown}{'; …' if len(bad) > most else ''})"


def _kind(value: Any) -> str:
    return "empty" if value in (None, "", []) else f"a {type(value).__name__}"
