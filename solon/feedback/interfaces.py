"""The border between who asks for verdicts and who gives them.

    items ──▶ Judge.judge() ──▶ verdicts

One engine is a judge (`solon.feedback.judges.engine_judge`); a cascade and a jury are judges made of judges; so are the
wrappers that inject biases and faults for tests. Labels of a training run, `solon label` and `solon judges`
all go through this one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from solon.feedback.questions import Source
from solon.records import Message, Status

Task = Literal["pairwise", "pointwise", "predicate", "score"]
"""Which of two answers is better; is this answer good; is this fact true of it; how good is it on a scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to be judged: one answer, or two for `pairwise`, under one question of one principle.

    Item(task="pairwise", conversation=(Message(role="user", content="hi"),), answers=("hello", "go away"),
         principle_id="polite", question="Which is more polite?")
    """

    task: Task
    conversation: tuple[Message, ...]
    answers: tuple[str, ...]
    principle_id: str
    question: str
    polarity: int = 1
    """-1 for a predicate that speaks against the answer: its margin is turned around."""
    scale: int = 5
    """Score: the highest mark; the lowest is 1."""
    cut: tuple[bool, ...] = ()
    """Which of the answers ended at the length limit; empty: none, or the judge is not to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said about one item. `margin` is None unless the status is valid.

    Verdict(status=Status.OK, margin=1.2, raw_margin=1.5, mass=0.99, judge="judge-0")
    """

    status: Status
    margin: float | None
    """Calibrated log-odds of yes, or of the first answer over the second; for a score, its distance from the
    middle of the scale."""
    raw_margin: float | None = None
    """The same before calibration."""
    position_offset: float | None = None
    """Pairwise: how much the judge favours the answer shown first, in nats; None when one order was asked."""
    consistent: bool | None = None
    """Pairwise, both orders asked: whether both favour the same answer."""
    mass: float = 0.0
    """Probability on the answer labels; the smaller one of both orders."""
    judge: str = ""
    level: int = 0
    """0: the first judge of a cascade; 1: the one it escalates to; and so on."""
    source: Source = "judge"
    questions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_hits: int = 0
    usd: float = 0.0
    propensity: float = 1.0
    """Probability with which this judge was to be asked; below 1, the margin is a doubly-robust reward."""
    prompt_digests: tuple[str, ...] = ()
    detail: str = ""

    def __post_init__(self) -> None:
        if self.status.valid != (self.margin is not None):
            raise ValueError(f"a {self.status} verdict with margin {self.margin}: only a valid one has a number")


class Judge(Protocol):
    """Gives verdicts."""

    @property
    def name(self) -> str: ...

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items. What failed for one item is a status of its verdict; an exception
        means that the judge is gone."""
        ...


def sound(verdict: Verdict) -> Verdict:
    """A margin that is no number is no verdict."""
    if verdict.margin is None or math.isfinite(verdict.margin):
        return verdict
    said = f"a margin of {verdict.margin}"
    return replace(verdict, status=Status.ABSTAIN, margin=None, raw_margin=None, consistent=None, detail=said)
