"""Texts that are no answers, counted before anything else is: a score of gibberish says nothing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

Kind = Literal["", "empty", "repeats", "copies"]
MOST_REPEATED = 0.5
"""Share of the runs of four words that repeat an earlier one."""
MOST_COMPRESSED = 3.0
"""Characters over compressed bytes of the window that compresses best. Prose is below 2.2 in windows of this size and
Python below 2.7; a sentence that is said again and again is above 4."""
LEAST_CHARACTERS = 100
"""Shorter texts compress badly whatever they say."""
WINDOW = 600
"""Characters: longer texts compress better, however good they are."""
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
    if len(answer) >= LEAST_CHARACTERS and _most_compressed(answer) > MOST_COMPRESSED:
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


def _most_compressed(text: str) -> float:
    """Over windows that overlap by half."""
    starts = range(0, max(1, len(text) - WINDOW // 2), WINDOW // 2)
    windows = [text[start : start + WINDOW] for start in starts]
    return max(len(one) / len(zlib.compress(one.encode("utf-8", "replace"))) for one in windows)


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
