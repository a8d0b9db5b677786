"""Runs a constitution's own unit tests against a judge: does it understand the questions?

    results = await run(constitution, judge, "pairwise")
    all(result.passed for result in results)

A test expects one of two answers, or neither. `pairwise` asks which is better; every other task asks about each answer
separately, and the difference of the two numbers decides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from solon.constitution.constitution import Asked, Constitution
from solon.constitution.rules import Weighed
from solon.constitution.sections import UnitTest
from solon.feedback.interfaces import Item, Judge
from solon.verdicts import Task, Verdict

MARGIN_CLIP = 3.0
"""Most nats that one of several principles counts, as in training by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """A judge's result on one unit test.

    TestResult(number=0, principles=("polite",), prompt="hi", expected="a", got="a", margin=2.1)
    """

    number: int
    """Position in the file, from 0."""
    principles: tuple[str, ...]
    """The tested principles."""
    prompt: str
    """The last turn."""
    expected: Literal["a", "b", "tie"]
    got: Literal["a", "b", "tie", "invalid"]
    margin: float | None
    """Nats for `a` over `b`; None if a verdict failed."""
    detail: str = ""
    """What failed."""

    @property
    def passed(self) -> bool:
        """Whether the judge answered as the test expects."""
        return self.got == self.expected

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


async def run(
    constitution: Constitution, judge: Judge, task: Task = "pairwise", *, margin_clip: float = MARGIN_CLIP
) -> list[TestResult]:
    """The results of all tests, in the order of the file.

    Raises InputError when a tested principle cannot be asked in the form of the task.
    """
    subjects = [(test, tuple(_questions(constitution, test, task))) for test in constitution.tests]
    items = [item for test, asked in subjects for one in asked for item in _items(test, one, task)]
    verdicts = iter(await judge.judge(items) if items else [])
    results = []
    for number, (test, asked) in enumerate(subjects):
        found = [(one, tuple(next(verdicts) for _ in _items(test, one, task))) for one in asked]
        results.append(_result(number, test, found, constitution, margin_clip))
    return results


def _questions(constitution: Constitution, test: UnitTest, task: Task) -> Sequence[Asked]:
    tested = {principle.id for principle in constitution.tested_by(test)}
    return [one for one in constitution.questions_for(task, test.as_prompt()) if one.principle.id in tested]


def _items(test: UnitTest, asked: Asked, task: Task) -> list[Item]:
    subjects = [(test.a, test.b)] if task == "pairwise" else [(test.a,), (test.b,)]
    return [
        Item(
            task=task,
            conversation=test.as_prompt().messages,
            answers=answers,
            principle_id=asked.principle.id,
            question=asked.question,
            polarity=asked.polarity,
            scale=asked.scale,
        )
        for answers in subjects
    ]


def _result(
    number: int,
    test: UnitTest,
    found: Sequence[tuple[Asked, tuple[Verdict, ...]]],
    constitution: Constitution,
    clip: float,
) -> TestResult:
    failed = [verdict for _, verdicts in found for verdict in verdicts if verdict.margin is None]
    margin = None if failed else _margin(found, constitution, clip)
    got: Literal["a", "b", "tie", "invalid"] = "invalid"
    if margin is not None:
        is_tie = abs(margin) < constitution.aggregation.tie_band or margin == 0
        got = "tie" if is_tie else "a" if margin > 0 else "b"
    return TestResult(
        number=number,
        principles=tuple(dict.fromkeys(asked.principle.id for asked, _ in found)),
        prompt=test.as_prompt().messages[-1].content,
        expected=test.expect,
        got=got,
        margin=margin,
        detail=": ".join(filter(None, (str(failed[0].status), failed[0].detail))) if failed else "",
    )


def _margin(found: Sequence[tuple[Asked, tuple[Verdict, ...]]], constitution: Constitution, clip: float) -> float:
    """Nats for `a` over `b`: the mean over a principle's questions, then the aggregation over principles."""
    by_principle: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    known = {asked.principle.id: asked.principle for asked, _ in found}
    for asked, verdicts in found:
        by_principle[asked.principle.id].append(tuple(v.margin for v in verdicts if v.margin is not None))
    numbers = {
        name: [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        for name, rows in by_principle.items()
    }
    if len(numbers) == 1:  # nothing to weigh it against: the margin is shown unclipped
        (only,) = numbers.values()
        return only[0] - (only[1] if len(only) > 1 else 0.0)
    sides = [
        [Weighed(row[side], known[name].weight, known[name].severity == "hard") for name, row in numbers.items()]
        for side in range(len(found[0][1]))
    ]
    if len(sides) == 1:
        return constitution.aggregation.preference(sides[0], clip=clip)
    return constitution.aggregation.reward(sides[0], clip=clip) - constitution.aggregation.reward(sides[1], clip=clip)
