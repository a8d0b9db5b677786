"""Why groups were dropped, said once for all that were dropped for one reason, with what helps, and when too many were.

A message that may come thousands of times is folded: it is told at the first, the fourth, the sixteenth time and so on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

ENOUGH_GROUPS = 40
"""Finished groups from which on the dropped share ends a run; a share of fewer says little."""
SAID_AT = 4
"""A reason is told again when it has dropped so many times more groups."""
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
    """What reasons that differ in numbers alone have in common: the most frequent status of a label, or the words.

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
    """The cause, and what helps where that is known."""
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
    """That a larger share of the finished groups was dropped than is allowed, and why; None: it was not.

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
    """Counts messages by kind; says at which count one is to be told: 1, 4, 16 and so on."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._next: dict[str, int] = {}
        self._told: Counter[str] = Counter()

    def add(self, kind: str) -> int | None:
        """How many there are with this one; None: it is not to be told."""
        self._counts[kind] += 1
        count = self._counts[kind]
        if count < self._next.get(kind, 1):
            return None
        self._next[kind] = count * SAID_AT
        self._told[kind] = count
        return count

    def untold(self) -> dict[str, int]:
        """How many there are of each kind of which more came than was told."""
        return {kind: count for kind, count in self._counts.items() if count > self._told[kind]}


class Drops:
    """Groups dropped so far; says each kind at the first, the fourth, the sixteenth and so on."""

    def __init__(self) -> None:
        self._folded = Folded()

    def add(self, reason: str) -> str | None:
        """What is to be said of one more dropped group; None: nothing new."""
        count = self._folded.add(kind_of(reason))
        return None if count is None else sentence(reason, count)
