"""Judges that fail on purpose, at a seeded rate: for tests, and to measure what failures do to training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from solon.feedback.judging import Item, Judge, Verdict
from solon.feedback.questions import Answer, Ask, Question, question_digest
from solon.records import Status

FAILURES = (
    Status.TIMEOUT,
    Status.TRANSPORT_ERROR,
    Status.UNPARSABLE,
    Status.REFUSAL,
    Status.LOW_MASS,
    Status.ABSTAIN,
    Status.TRUNCATED,
    Status.ENGINE_ERROR,
)


@dataclass(slots=True)
class FaultyJudge:
    """A `Judge` whose verdicts are lost at a rate; which ones depends on the item and the seed alone.

    The other verdicts are those of the judge behind it, untouched.
    """

    judge_: Judge
    rate: float
    seed: int = 0

    @property
    def name(self) -> str:
        return self.judge_.name

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts = await self.judge_.judge(items)
        return [self._lost(item, verdict) for item, verdict in zip(items, verdicts, strict=True)]

    def _lost(self, item: Item, verdict: Verdict) -> Verdict:
        said = "\0".join((item.question, *(m.content for m in item.conversation), *item.answers))
        failure = drawn(said.encode("utf-8", "surrogatepass"), rate=self.rate, seed=self.seed)
        if failure is None:
            return verdict
        return replace(verdict, status=failure, margin=None, raw_margin=None, position_offset=None, detail="injected")


@dataclass(slots=True)
class FaultyAsk:
    """An `Ask` that fails at a rate, or answers with what is no log-prob."""

    ask: Ask
    rate: float
    seed: int = 0

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        answers = await self.ask(questions)
        return [self._spoilt(q, a) for q, a in zip(questions, answers, strict=True)]

    def _spoilt(self, question: Question, answer: Answer) -> Answer:
        failure = drawn(question_digest(question).encode(), rate=self.rate, seed=self.seed)
        match failure:
            case None:
                return answer
            case Status.ABSTAIN:
                return replace(answer, logprobs=tuple(float("nan") for _ in answer.logprobs))
            case Status.LOW_MASS:
                return replace(answer, logprobs=tuple(-20.0 - n for n, _ in enumerate(answer.logprobs)))
        return Answer((), failure=failure, detail="injected")


def drawn(subject: bytes, *, rate: float, seed: int) -> Status | None:
    """The failure that befalls a subject, the same one every time; None for most."""
    digest = hashlib.sha256(f"{seed}:".encode() + subject).digest()
    if int.from_bytes(digest[:8], "big") >= rate * 2**64:
        return None
    return FAILURES[digest[8] % len(FAILURES)]
