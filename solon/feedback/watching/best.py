"""Finds the checkpoint with the best gold reward. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from solon.feedback.watching.drift import Window


def gold_at(steps: Sequence[int], windows: Sequence[Window]) -> list[float]:
    """Gold reward of the policy at each step: interpolated linearly between the means of two windows; before the first
    and after the last window, that window's mean."""
    ordered = sorted(windows, key=lambda window: window.step)
    return np.interp(steps, [w.step for w in ordered], [w.gold for w in ordered]).tolist() if ordered else []


def ranked(steps: Iterable[int], windows: Sequence[Window]) -> list[int]:
    """The steps by gold reward, best first; of two equal ones the later first. Empty without windows.

    >>> ranked([10, 20], [])
    []
    """
    known = sorted(set(steps))
    golds = gold_at(known, windows)
    return [step for _, step in sorted(zip(golds, known, strict=False), reverse=True)]
