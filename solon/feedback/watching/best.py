"""Which checkpoint gold liked best. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from solon.feedback.watching.drift import Window


def gold_at(steps: Sequence[int], windows: Sequence[Window]) -> list[float]:
    """What gold said of the policy of each of these steps: between the means of two windows on the line between them,
    before the first and after the last window that window's."""
    ordered = sorted(windows, key=lambda window: window.step)
    return np.interp(steps, [w.step for w in ordered], [w.gold for w in ordered]).tolist() if ordered else []


def ranked(steps: Iterable[int], windows: Sequence[Window]) -> list[int]:
    """The steps, those that gold likes best first; of two that it likes the same, the later one. Empty without windows.

    >>> ranked([10, 20], [])
    []
    """
    known = sorted(set(steps))
    golds = gold_at(known, windows)
    return [step for _, step in sorted(zip(golds, known, strict=False), reverse=True)]
