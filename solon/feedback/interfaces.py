"""The interface between callers that need verdicts and the judges that give them.

    items ──▶ Judge.judge() ──▶ verdicts

One engine is a judge (`solon.feedback.judges.engine_judge`); a cascade and a jury are judges made of judges, and so are
the wrappers that inject biases and faults in tests. Training runs, `solon label` and `solon judges` get all labels
through this one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from solon.records import Message
from solon.verdicts import Status, Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to judge: one answer, or two for `pairwise`, under one question of one principle.

    Item(task="pairwise", conversation=(Message(role="user", content="hi"),), answers=("hello", "go away"),
         principle_id="polite", question="Which is more polite?")
    """

    task: Task
    conversation: tuple[Message, ...]
    answers: tuple[str, ...]
    principle_id: str
    question: str
    polarity: int = 1
    """-1 for a predicate that speaks against the answer: its margin is negated."""
    scale: int = 5
    """Score: the highest mark; the lowest is 1."""
    cut: tuple[bool, ...] = ()
    """Which answers ended at the length limit; empty: none, or the judge is not told."""


class Judge(Protocol):
    """Gives verdicts."""

    @property
    def name(self) -> str:
        """Name of the judge in its verdicts."""
        ...

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items. A failure for one item is a status of its verdict; an exception means
        that the judge is lost."""
        ...


def sound(verdict: Verdict) -> Verdict:
    """Treat a non-finite margin as an abstention."""
    if verdict.margin is None or math.isfinite(verdict.margin):
        return verdict
    said = f"a margin of {verdict.margin}"
    return replace(verdict, status=Status.ABSTAIN, margin=None, raw_margin=None, consistent=None, detail=said)
