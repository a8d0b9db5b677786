"""Texts that are no answers, counted before anything else is: a score of gibberish says nothing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

Kind = Literal["", "empty", "repeats", "copies"]
MOST_REPEATED = 0.5
"""Share of the runs of four words that repeat an earlier one."""
MOST_COMPRESSED = 2.4
"""Characters over compressed bytes; plain text is below 2 (the limit of Radford et al. 2022)."""
LEAST_WORDS = 20
"""Shorter texts compress badly whatever they say."""
MOST_COPIED = 0.8
"""Share of an answer's runs of four words that the prompt has too."""


def degenerate(answer: str, prompt: str = "") -> Kind:
    """What is wrong with a text; empty: nothing.

    >>> degenerate("yes yes yes yes yes yes yes yes yes yes yes yes")
    'repeats'
    >>> degenerate("Boil the egg for seven minutes.")
    ''
    """
    words = answer.split()
    if not words:
        return "empty"
    runs = _runs(words)
    if len(runs) > 1 and 1 - len(set(runs)) / len(runs) > MOST_REPEATED:
        return "repeats"
    raw = answer.encode("utf-8", "replace")
    if len(words) >= LEAST_WORDS and len(raw) / len(zlib.compress(raw)) > MOST_COMPRESSED:
        return "repeats"
    asked = set(_runs(prompt.split()))
    if len(runs) > 1 and sum(run in asked for run in runs) / len(runs) > MOST_COPIED:
        return "copies"
    return ""


def distinct_pairs(texts: Sequence[str], most: int | None = None) -> float:
    """Different over all pairs of neighbouring words, over all texts; `most`: count only so many pairs, since the share
    falls with their number."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)][:most]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
