"""Pairs with a known better answer, on which judges are measured.

A row of the file is one of

    {"prompt": text or messages, "chosen": …, "rejected": …}
    {"prompt": text or messages, "a": …, "b": …, "expect": "a" | "b" | "tie"}

and may name a `principle` of the constitution, `tags` of the prompt and its `subset`. Without a principle a pair is
asked under every one that applies, and the weighted mean of their margins is compared with gold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.constitution.arguments import with_arguments
from solon.constitution.constitution import Constitution, Principle
from solon.errors import InputError, nearest, short
from solon.feedback.interfaces import Item
from solon.feedback.labelling.dataset import parse_row
from solon.files.rows import read_rows
from solon.records import Prompt

EXPECTED = {"a": 1.0, "b": 0.0, "tie": 0.5}
MAX_BAD_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldPair:
    """Two answers, the questions to a judge about them, and the right verdict."""

    items: tuple[Item, ...]
    """The same two answers under each principle of the test."""
    weights: tuple[float, ...]
    """Weight of each principle."""
    target: float
    """1: the first answer is better; 0: the second one; between: probability of the first, 0.5 for a tie."""
    prompt_id: str
    """Pairs of one prompt are not independent of each other."""
    subset: str = ""

    @property
    def is_decided(self) -> bool:
        """Whether gold favours one of them."""
        return self.target != 0.5


def load_gold(path: str | Path, constitution: Constitution) -> tuple[GoldPair, ...]:
    """Raises InputError when the file cannot be read, or more than one row in a hundred is unusable."""
    pairs: list[GoldPair] = []
    bad: list[str] = []
    for place, raw in read_rows(path, what="pair"):
        try:
            pairs.append(parse_gold(place.ordinal, raw, constitution))
        except ValueError as error:
            bad.append(f"{place}: {error}")
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    if not pairs:
        raise InputError(f"file of pairs {path} has none that can be used ({shown or 'it is empty'})")
    if len(bad) > MAX_BAD_SHARE * (len(bad) + len(pairs)):
        raise InputError(
            f"file of pairs {path}: {len(bad)} of {len(bad) + len(pairs)} rows cannot be used, more than "
            f"{MAX_BAD_SHARE:.0%}: {shown}; fix or remove them"
        )
    return tuple(pairs)


def parse_gold(number: int, raw: Any, constitution: Constitution) -> GoldPair:
    """Parse one row. Raises ValueError with the reason if it is invalid."""
    if isinstance(raw, Exception):
        raise ValueError(str(raw))
    if not isinstance(raw, dict):
        raise ValueError(f"holds a {type(raw).__name__}, expected an object with `prompt` and two answers")
    raw = {key: value for key, value in raw.items() if value is not None}
    if "chosen" in raw or "rejected" in raw:
        target, answers = 1.0, [raw.get("chosen"), raw.get("rejected")]
    elif "a" in raw or "b" in raw:
        target, answers = _expected(raw), [raw.get("a"), raw.get("b")]
    else:
        raise ValueError("has no answers, expected `chosen` and `rejected`, or `a`, `b` and `expect`")
    subset = raw.get("subset", "")
    if not isinstance(subset, str):
        raise ValueError(f"`subset` is {short(subset)}, expected a word")
    row = parse_row(number, {**{key: raw[key] for key in ("prompt", "tags") if key in raw}, "answers": answers})
    first, second = row.answers
    principles = _asked(raw, row.prompt, constitution)
    try:
        return gold_pair(row.prompt, first, second, target=target, principles=principles, subset=subset)
    except InputError as error:
        raise ValueError(str(error)) from None


def gold_pair(
    prompt: Prompt, first: str, second: str, *, target: float, principles: Iterable[Principle], subset: str = ""
) -> GoldPair:
    """A pair under these principles, each of which has a pairwise question.

    Files put the better answer first. Here the order follows from the texts, so that "always the first one" is right
    half of the time.
    """
    digest = hashlib.sha256("\0".join((prompt.prompt_id, *sorted((first, second)))).encode()).digest()
    if (first < second) != (digest[0] % 2 == 0):
        first, second, target = second, first, 1 - target
    principles = tuple(principles)
    return GoldPair(
        items=tuple(
            Item(
                task="pairwise",
                conversation=prompt.messages,
                answers=(first, second),
                principle_id=principle.id,
                question=with_arguments(principle.pairwise_question, principle.applies_if.tags_any, prompt),
            )
            for principle in principles
        ),
        weights=tuple(principle.weight for principle in principles),
        target=target,
        prompt_id=prompt.prompt_id,
        subset=subset,
    )


def _expected(raw: dict[str, Any]) -> float:
    expect = raw.get("expect")
    if not isinstance(expect, str) or expect not in EXPECTED:
        raise ValueError(f"`expect` is {short(expect)}, expected one of {', '.join(EXPECTED)}")
    return EXPECTED[expect]


def _asked(raw: dict[str, Any], prompt: Prompt, constitution: Constitution) -> list[Principle]:
    """The principles of a row: the one that it names, or all that apply to its prompt."""
    by_id = {principle.id: principle for principle in constitution.principles}
    name = raw.get("principle")
    if name is None:
        found = [p for p in by_id.values() if p.pairwise_question.strip() and p.applies_if(prompt)]
        if not found:
            raise ValueError(f"no principle of {constitution.id!r} with a pairwise_question applies to its tags")
        return found
    if not isinstance(name, str) or name not in by_id:
        raise ValueError(f"`principle` is {short(name)}, expected one of {', '.join(by_id)}{nearest(str(name), by_id)}")
    if not by_id[name].pairwise_question.strip():
        raise ValueError(f"principle {name!r} has no pairwise_question")
    return [by_id[name]]
