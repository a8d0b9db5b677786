"""The specialised English judge against larger ones that were taught nothing: agreement with the programs, and rates.

    python benchmarks/english_judges.py [--quick] [--gemma] [--json PATH]

SmolLM2 answers prompts about topics that no judge was taught, twice each. Every judge is asked about every answer
(yes or no) and about every pair on which the programs see a difference, one verdict a question: the specialised judge
in bfloat16 and int8, SmolLM2 itself and, with `--gemma`, Gemma 3 270M; the last two with the instructions that
untrained judges get. All engines are in one process on two threads and alternate part by part; rates are medians over
parts, ratios medians over the parts' own ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from english.grow import English, grow
from english.judge import ask, collect, open_engine, questions, shares
from english.lessons import Examiner
from learners.objectives.distil import Lesson
from solon.engines.base import Engine
from solon.feedback.prompting.prompts import ASSISTANT, SPECIALISED, JudgeTemplate

PROMPTS, QUICK_PROMPTS = 256, 32
PARTS, QUICK_PARTS = 8, 2
SEED = 77


@dataclass(slots=True)
class Candidate:
    """A judge, the questions in its own layout, and whether its answers are right."""

    name: str
    engine: Engine
    lessons: list[tuple[str, Lesson]]
    right: list[bool] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)

    def ask_part(self, part: slice) -> None:
        """Ask one part of the questions."""
        asked = [lesson for _, lesson in self.lessons[part]]
        started = time.perf_counter()
        self.right += ask(self.engine, asked)
        self.per_second.append(len(asked) / (time.perf_counter() - started))

    @property
    def agreement(self) -> Mapping[str, float]:
        return shares([key for key, _ in self.lessons[: len(self.right)]], self.right)

    @property
    def majority(self) -> Mapping[str, float]:
        """Agreement of a judge that always gives the more frequent verdict."""
        asked = self.lessons[: len(self.right)]
        first = shares([key for key, _ in asked], [lesson.margin > 0 for _, lesson in asked])
        return {key: max(share, 1 - share) for key, share in first.items()}

    def number(self, name: str) -> int:
        """Questions of a kind."""
        return sum(name in (key, key.partition("/")[0]) for key, _ in self.lessons[: len(self.right)])


def candidates(grown: English, *, number: int, gemma: Path | None) -> list[Candidate]:
    """All judges with the same questions about fresh answers."""
    written = collect(grown.policy, number, "gold", seed=SEED, opened=False, tick=lambda _: None)

    def make(name: str, model: Path, template: JudgeTemplate) -> Candidate:
        asked = questions(Examiner.of(model, template), written)
        # Of one answer after another, so that every part has every kind of question.
        lessons = [(key, lesson) for key, found in asked.items() for lesson in found]
        stride = 97
        order = sorted(range(len(lessons)), key=lambda index: index * stride % len(lessons))
        return Candidate(name, open_engine(model), [lessons[index] for index in order])

    found = [
        make("SmolLM2, zero-shot", grown.policy, ASSISTANT),
        make("specialised", grown.judge_fp, SPECIALISED),
        make("specialised, int8", grown.judge, SPECIALISED),
    ]
    return [*found, *([make("Gemma 3 270M, zero-shot", gemma, ASSISTANT)] if gemma else [])]


def measure(judges: Sequence[Candidate], parts: int) -> None:
    """All judges alternate part by part; the first part, which warms them up, is asked twice."""
    size = len(judges[0].lessons) // parts
    for judge in judges:
        ask(judge.engine, [lesson for _, lesson in judge.lessons[:16]])
    for part in range(parts):
        for judge in judges:
            judge.ask_part(slice(part * size, (part + 1) * size))


def rows(judges: Sequence[Candidate]) -> list[Row]:
    """Agreement and rates; zero-shot SmolLM2 is the other side."""
    base, special, small = judges[:3]
    found = [
        Row("specialised: agreement on pairs", special.agreement["pairwise"], base.agreement["pairwise"], ">= 0.9"),
        Row("int8: agreement on pairs", small.agreement["pairwise"], base.agreement["pairwise"], ">= 0.9"),
        Row("int8: points of agreement lost", 100 * (special.agreement["pairwise"] - small.agreement["pairwise"]),
            None, "<= 0.5"),
    ]  # fmt: skip
    for judge in judges:
        ratio = statistics.median(a / b for a, b in zip(judge.per_second, base.per_second, strict=True))
        goal = ">= 3" if judge is small else ""
        rate = statistics.median(judge.per_second)
        found += [
            Row(f"{judge.name}: verdicts/s", rate, rate / ratio if judge is not base else None),
            Row(f"{judge.name}: verdicts/s over zero-shot SmolLM2", ratio, None, goal),
            Row(f"{judge.name}: agreement, pairs", judge.agreement["pairwise"]),
            Row(f"{judge.name}: agreement, single answers", judge.agreement["pointwise"]),
        ]
    return [
        *found,
        *(Row(f"int8: {key}, {small.number(key)} asked (reference: majority)", share, small.majority[key])
          for key, share in small.agreement.items()),
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--gemma", type=Path, metavar="DIR", help="a directory of Gemma 3 270M, imported before")
    given = parser.parse_args()
    judges = candidates(grow(), number=QUICK_PROMPTS if given.quick else PROMPTS, gemma=given.gemma)
    measure(judges, QUICK_PARTS if given.quick else PARTS)
    report("english_judges", rows(judges), given.json)


if __name__ == "__main__":
    main()
