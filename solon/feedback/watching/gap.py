"""Gap between reward and gold: a sequential test of their difference, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from solon.feedback.watching.drift import Window, pooled_std


@dataclass(slots=True)
class Cusum:
    """One-sided cumulative sum of standardised values (Page 1954): it rises when they stay above `slack`.

    With slack 0.5 and limit 5, independent standard normal values raise it above the limit about once in 930.
    """

    slack: float = 0.5
    limit: float = 5.0
    value: float = 0.0

    def add(self, standardised: float) -> bool:
        """Whether the limit is exceeded now."""
        self.value = max(0.0, self.value + standardised - self.slack)
        return self.value > self.limit


class Gap:
    """CUSUM of proxy minus gold, each in standard deviations of the reference windows.

    The two judges have different scales and an improving policy rises on both, so raw differences grow without any
    fault. `tolerance`: a gap of this many standard deviations is accepted.
    """

    def __init__(self, reference: Sequence[Window], *, tolerance: float, slack: float, limit: float) -> None:
        self._scale = pooled_std(reference, "proxy_std"), pooled_std(reference, "gold_std")
        num = sum(w.num for w in reference)
        self._start = sum(w.num * self._raw(w) for w in reference) / num
        correlations = [w.correlation for w in reference if math.isfinite(w.correlation)]
        # Var(p - g) = 2 - 2 r on unit scales; both vary with the audited prompts.
        mean = sum(correlations) / len(correlations) if correlations else 0.0
        self._variance = max(2 - 2 * mean, 0.05)
        self._reference_num = num
        self._tolerance = tolerance
        self.cusum = Cusum(slack=slack, limit=limit)
        self.value = 0.0
        """Gap of the last window, standard deviations."""

    def add(self, window: Window) -> bool:
        """Whether the gap has become too wide."""
        self.value = self._raw(window) - self._start
        noise = math.sqrt(self._variance * (1 / window.num + 1 / self._reference_num))
        return self.cusum.add((self.value - self._tolerance) / noise)

    def _raw(self, window: Window) -> float:
        return window.proxy / self._scale[0] - window.gold / self._scale[1]
