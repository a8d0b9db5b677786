"""Preference pairs of a file as token ids of a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from compression.pairs import Pair
from learners.data.reading import read_pairs
from solon.engines.tokens import ChatTokenizer


def policy_pairs(model: Path, path: Path, *, max_tokens: int) -> tuple[list[Pair], Sequence[tuple[str, str]]]:
    """Pairs, and rows that were left out with the reason. Raises InputError for a file without a usable pair."""
    read = read_pairs(path, ChatTokenizer.load(str(model)), max_tokens=max_tokens, soft=False)
    found = [
        # Texts that the model reads alike are one prompt.
        Pair(
            prompt_id=hashlib.sha256(repr(pair.prompt).encode()).hexdigest()[:24],
            prompt=pair.prompt,
            chosen=pair.first,
            rejected=pair.second,
            tags=tags,
        )
        for pair, tags in zip(read.pairs, read.tags, strict=True)
    ]
    return found, read.skipped
