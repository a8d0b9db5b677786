"""Statistics of a set of labels: how many are valid, how sure, how consistent, at what cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from solon.feedback.labelling.preferences import Preference
from solon.feedback.quality.position import PositionCount, pairs_of
from solon.records import Label


@dataclass(slots=True)
class Summary:
    """`summary.add(labels_of_a_row, its_preferences)`, then `summary.to_dict()`."""

    statuses: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    questions: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    both_orders: int = 0
    consistent: int = 0
    escalated: int = 0
    preferences: int = 0
    first_chosen: int = 0
    position: PositionCount = field(default_factory=PositionCount)
    detail: str = ""
    """Detail of the first invalid label."""
    _margin: float = 0.0
    _offset: float = 0.0
    _offsets: int = 0
    _entropy: float = 0.0

    def add(self, labels: Sequence[Label], preferred: Sequence[Preference]) -> None:
        """Add the labels of one row."""
        self.position.add(pairs_of(labels))
        for label in labels:
            self.labels += 1
            self.statuses[str(label.status)] += 1
            if not label.status.valid:
                self.detail = self.detail or label.verdict.detail
            self.questions += label.verdict.questions
            self.cache_hits += label.verdict.cache_hits
            self.prompt_tokens += label.verdict.prompt_tokens
            self.cached_tokens += label.verdict.cached_tokens
            self.output_tokens += label.verdict.output_tokens
            self.usd += label.verdict.usd
            self.escalated += label.verdict.level > 0
            if label.verdict.consistent is not None:
                self.both_orders += 1
                self.consistent += label.verdict.consistent
            if label.verdict.position_offset is not None:
                self._offsets += 1
                self._offset += label.verdict.position_offset
            if label.margin is not None:
                self._margin += abs(label.margin)
                self._entropy += binary_entropy(label.margin)
        for preference in preferred:
            self.preferences += 1
            self.first_chosen += preference.chosen < preference.rejected

    @property
    def valid(self) -> int:
        """Labels with a number."""
        return self.statuses["ok"] + self.statuses["tie"]

    def to_dict(self) -> dict[str, Any]:
        """Each share refers to its own total; None if that is zero."""
        valid = self.valid
        return {
            "labels": {
                "total": self.labels,
                "valid": valid,
                "invalid": self.labels - valid,
                "by_status": dict(sorted(self.statuses.items())),
            },
            "quality": {
                "tie_share": _share(self.statuses["tie"], valid),
                "consistent_share": _share(self.consistent, self.both_orders),
                "both_orders": self.both_orders,
                "by_position_share": _share(self.position.by_position, self.position.pairs),
                "position_offset_mean": _share(self._offset, self._offsets),
                "first_answer_chosen_share": _share(self.first_chosen, self.preferences),
                "margin_mean": _share(self._margin, valid),
                "entropy_bits_mean": _share(self._entropy, valid),
                "escalated_share": _share(self.escalated, self.labels),
            },
            "cost": {
                "questions": self.questions,
                "cache_hits": self.cache_hits,
                "prompt_tokens": self.prompt_tokens,
                "cached_token_share": _share(self.cached_tokens, self.prompt_tokens),
                "output_tokens": self.output_tokens,
                "usd": self.usd,
                "usd_per_1k_valid": _share(1000 * self.usd, valid),
            },
        }


def binary_entropy(margin: float) -> float:
    """Uncertainty in bits of a label with this log-odds.

    >>> binary_entropy(0.0)
    1.0
    """
    p = 1 / (1 + math.exp(-abs(margin)))
    return 0.0 if p == 1.0 else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
