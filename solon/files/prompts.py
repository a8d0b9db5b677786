"""Reads prompts from a file or dataset, as text or messages; broken rows are counted and reported with their place.

`docs/prompts.md` describes the formats.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from solon.errors import InputError, nearest, short
from solon.files.data_config import DataConfig, ReadConfig
from solon.files.row_formats import SHARE_GPT
from solon.files.rows import Place, Refused, column_hint, described, excerpt_of, read_rows
from solon.records import Message, Prompt

ROLES = ("system", "user", "assistant")
TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
"""Keys without which a turn has another meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """Prompts from one source, and the problems with its other rows."""

    path: str
    prompts: tuple[Prompt, ...]
    places: tuple[Place, ...]
    """Place of each prompt."""
    bad: tuple[Refused, ...] = ()
    """Broken rows."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Unused keys of turns, with the number of prompts that have them."""
    from_json: int = 0
    """Number of prompts that were messages in JSON."""

    @property
    def read(self) -> int:
        """Number of rows, including broken ones."""
        return len(self.prompts) + len(self.bad)

    def notes(self) -> list[str]:
        """Notes for the user."""
        return [json_note(self.path, self.from_json)] if self.from_json else []

    def warnings(self) -> list[str]:
        """One line about skipped rows, one about unused keys."""
        found = []
        if self.bad:
            found.append(f"{self.path}: skipped {len(self.bad)} of {self.read:,} rows, broken ({described(self.bad)})")
        if self.unused:
            keys = ", ".join(f"`{key}` ({count:,} prompts)" for key, count in sorted(self.unused.items()))
            found.append(f"{self.path}: turns have keys that are not used: {keys}")
        return found


def load_prompts(
    source: str | Path, *, read: ReadConfig | None = None, max_bad_share: float = DataConfig().max_bad_share
) -> PromptFile:
    """Read and check prompts. Raises InputError when the file cannot be used."""
    read = read or ReadConfig()
    prompts: list[Prompt] = []
    places: list[Place] = []
    bad: list[Refused] = []
    unused: Counter[str] = Counter()
    from_json = 0
    for place, row in read_rows(source, what="prompt", read=read, columns=(read.column, "tags")):
        row, is_json = with_messages(row, read.column) if read.json_messages else (row, False)
        try:
            prompts.append(parse_prompt(row, column=read.column))
        except ValueError as error:
            bad.append(Refused(place=place, reason=str(error), excerpt=excerpt_of(row)))
        else:
            places.append(place)
            from_json += is_json
            unused.update(unused_keys(row[read.column]))
    if not prompts:
        found = f"all {len(bad):,} rows are broken: {described(bad)}" if bad else "it is empty"
        raise InputError(f"prompt file {source} has no usable prompt, {found}; docs/prompts.md shows what is expected")
    if len(bad) > max_bad_share * (len(bad) + len(prompts)):
        raise InputError(
            f"prompt file {source}: {len(bad):,} of {len(bad) + len(prompts):,} rows are broken, more than "
            f"data.max_bad_share = {max_bad_share:g}: {described(bad)}; fix or remove them, or raise the share"
        )
    return PromptFile(
        path=str(source),
        prompts=tuple(prompts),
        places=tuple(places),
        bad=tuple(bad),
        unused=dict(unused),
        from_json=from_json,
    )


def with_messages(row: Any, *columns: str) -> tuple[Any, bool]:
    """The row with JSON messages in a column parsed, and whether there were any.

    >>> with_messages({"prompt": '[{"role": "user", "content": "hi"}]'}, "prompt")
    ({'prompt': [{'role': 'user', 'content': 'hi'}]}, True)
    """
    if not isinstance(row, dict):
        return row, False
    found = {name: turns for name in columns if (turns := json_messages(row.get(name))) is not None}
    return ({**row, **found}, True) if found else (row, False)


def json_messages(value: Any) -> list[Any] | None:
    """The turns of a text that is a JSON list of {role, content}; None for any other value."""
    if not isinstance(value, str) or not value.lstrip().startswith("[") or '"role"' not in value:
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return turns if turns and all(isinstance(t, dict) and {"role", "content"} <= t.keys() for t in turns) else None


def json_note(source: str | Path, count: int) -> str:
    """The note about messages that were found as JSON."""
    which = "1 row held messages as JSON" if count == 1 else f"{count:,} rows held messages as JSON"
    return f"{source}: {which}, read as messages; data.json_messages = false takes them as text"


def parse_prompt(row: Any, *, column: str = "prompt") -> Prompt:
    """A prompt from one row. Raises ValueError with the reason if it is invalid.

    >>> parse_prompt({"prompt": "what color is the sky ?"}).messages[0].role
    'user'
    """
    if isinstance(row, Exception):
        raise ValueError(str(row))
    if not isinstance(row, dict):
        raise ValueError(f"holds a {type(row).__name__}, expected an object with `{column}`")
    if column not in row:
        hint = next((hint for key in row if (hint := nearest(str(key), [column]))), "") or column_hint(row)
        raise ValueError(f"has no `{column}`, only {short(sorted(map(str, row)))}{hint}")
    messages = parse_messages(row[column], column=column)
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
    """Prompts by dispatch number: every epoch is its own permutation, determined by the seed.

    `source[n]` depends only on the seed and n, so a resumed run or a repeated attempt gets the same prompt.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int) -> None:
        self._prompts = prompts
        self._order = lru_cache(maxsize=4)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(prompts)))

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, ordinal: int) -> Prompt:
        epoch, index = divmod(ordinal, len(self._prompts))
        return self._prompts[int(self._order(epoch)[index])]


def parse_messages(value: Any, *, column: str = "prompt") -> tuple[Message, ...]:
    """A conversation from text or a list of {role, content}. Raises ValueError with the reason if it is invalid."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` is {_kind(value)}, expected text or a list of messages")
    messages = tuple(_parse_turn(turn, column) for turn in value)
    if messages[-1].role != "user":
        raise ValueError(f"`{column}` ends with a turn of {messages[-1].role}, expected to end with a user turn")
    if not messages[-1].content.strip():
        raise ValueError(f"`{column}` is empty")
    return messages


def unused_keys(value: Any) -> set[str]:
    """Non-empty unused keys of turns, in a value that `parse_messages` accepts."""
    if not isinstance(value, list):
        return set()
    return {str(key) for turn in value for key in turn if key not in ("role", "content") and turn[key] is not None}


def _parse_turn(turn: Any, column: str) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"`{column}` is a list with {_kind(turn)} in it, expected messages {{role, content}}")
    role, content = turn.get("role"), turn.get("content")
    if role is None and {"from", "value"} <= turn.keys():
        raise ValueError(f"`{column}` has {SHARE_GPT}")
    if role not in ROLES:
        raise ValueError(f"`{column}` has the role {short(role)}, expected one of {', '.join(ROLES)}")
    for key in TOOL_KEYS:
        if turn.get(key):
            raise ValueError(f"`{column}` has a turn with `{key}`, expected text alone: tools are not supported")
    if isinstance(content, list) and content:
        content = _joined_parts(content, column)
    if not isinstance(content, str):
        raise ValueError(
            f"`{column}` has a turn whose content is {_kind(content)}, expected {{role, content}} with text"
        )
    if not is_text(content):
        raise ValueError(f"`{column}` holds half a character (a lone surrogate), expected text")
    return Message(role=role, content=content)


def _joined_parts(parts: list[Any], column: str) -> str:
    """The text of content in parts, `[{"type": "text", "text": "…"}]`."""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"`{column}` has a turn with content of the type {short(kind)}, expected text")
    return "".join(part["text"] for part in parts)


def is_text(text: str) -> bool:
    """Whether it is valid UTF-8: JSON can contain unpaired surrogates, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """The kind of a value, for people."""
    if value is None or value in ("", []):
        return "empty"
    inner = {type(item).__name__ for item in value[:10]} if isinstance(value, list) else set()
    return f"a list of {inner.pop()}s" if len(inner) == 1 else f"a {type(value).__name__}"
