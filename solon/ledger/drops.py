"""Why groups were dropped, reported once for each reason with its remedy, and whether too many were dropped.

A message that may occur thousands of times is reported only the 1st, 4th, 16th time and so on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

ENOUGH_GROUPS = 40
"""The dropped share can end a run once this many groups are finished; a share of fewer says little."""
REPORT_FACTOR = 4
"""A message is reported again when its count has grown by this factor."""
# By status of a label. Written out: `solon doctor` reads this and must not wait for numpy.
_CAUSES = {
    "low_mass": (
        "the judge is unsure (low_mass): it puts little probability on its answer labels",
        "try another feedback.template, another judge or a smaller feedback.min_mass; "
        "where the constitution has `tests`, `solon check --tests` asks them of the judge",
    ),
    "truncated": (
        "the questions are too long for the judge (truncated)",
        "raise judging.max_model_len, or lower rollout.max_tokens",
    ),
    "refusal": ("the judge declines to judge (refusal)", "try another judge, or reword the constitution"),
    "unparsable": ("the judge answers in another form (unparsable)", "try another judge or feedback.template"),
    "abstain": ("the judges abstain", "lower feedback.jury.min_jurors, or try other judges"),
    "timeout": ("the judge does not answer in time (timeout)", "look at its endpoint, or raise its time limit"),
    "transport_error": ("the judge's endpoint fails (transport_error)", "look at its endpoint and key"),
    "engine_error": ("the judge's engine fails (engine_error)", "look at its log in the Ray dashboard"),
    "budget_skip": ("the budget of the judge is spent (budget_skip)", "raise max_usd of its endpoint"),
}
_STATUS = re.compile(r"\b({}) (\d+)".format("|".join(_CAUSES)))


def kind_of(reason: str) -> str:
    """A key that reasons share when they differ only in numbers: the most frequent label status, or the words.

    >>> kind_of("fewer than 2 rollouts with a valid label (low_mass 14, refusal 2)")
    'low_mass'
    """
    found = [(int(count), status) for status, count in _STATUS.findall(reason)]
    return max(found)[1] if found else re.sub(r"\d+", "N", reason)


def sentence(reason: str, count: int = 1) -> str:
    """A sentence for people.

    >>> sentence("fewer than 2 rollouts with a valid label (truncated 8)", 40)[:70]
    '40 groups dropped: the questions are too long for the judge (truncated'
    """
    groups = "1 group" if count == 1 else f"{count} groups"
    return f"{groups} dropped: {explain(reason)}"


def explain(reason: str) -> str:
    """The cause, with the remedy where one is known."""
    kind = kind_of(reason)
    if kind not in _CAUSES:
        return reason
    cause, remedy = _CAUSES[kind]
    return f"{cause}; {remedy}"


def summary(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """(explanation, groups) by kind, the most frequent first."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for reason, count in reasons.items():
        kind = kind_of(reason)
        counts[kind] += count
        example.setdefault(kind, reason)
    return [(explain(example[kind]), count) for kind, count in counts.most_common()]


def excess(reasons: Mapping[str, int], committed: int, allowed: float) -> str | None:
    """A sentence with the reasons when too large a share of the finished groups was dropped; None: it was not.

    >>> excess({"a": 1}, 19, 0.05) is None
    True
    """
    dropped = sum(reasons.values())
    finished = dropped + committed
    if dropped <= allowed * finished:
        return None
    causes = "; ".join(f"{count} because {cause}" for cause, count in summary(reasons)[:3])
    return (
        f"{dropped} of {finished} finished groups were dropped, more than ledger.max_dropped_share = {allowed:.0%} "
        f"allows: {causes}"
    )


class Folded:
    """Counts messages by kind and says at which counts one is reported: 1, 4, 16 and so on."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._next: dict[str, int] = {}
        self._reported: Counter[str] = Counter()

    def add(self, kind: str) -> int | None:
        """The count including this message; None: it is not reported this time."""
        self._counts[kind] += 1
        count = self._counts[kind]
        if count < self._next.get(kind, 1):
            return None
        self._next[kind] = count * REPORT_FACTOR
        self._reported[kind] = count
        return count

    def unreported(self) -> dict[str, int]:
        """Counts of the kinds that occurred more often than was reported."""
        return {kind: count for kind, count in self._counts.items() if count > self._reported[kind]}


class Drops:
    """Counts dropped groups by kind of reason; reports each kind the 1st, 4th, 16th time and so on."""

    def __init__(self) -> None:
        self._folded = Folded()

    def add(self, reason: str) -> str | None:
        """The sentence to report for one more dropped group; None: nothing new."""
        count = self._folded.add(kind_of(reason))
        return None if count is None else sentence(reason, count)
