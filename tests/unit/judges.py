"""Questions, answers, and judges that are slow, record their questions, and fail on request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from solon.feedback.questions import Answer, Question


def question(number: int, tokens: int = 3) -> Question:
    return Question((number, *range(tokens - 1)), (1, 2))


def answer_to(asked: Question) -> Answer:
    return Answer((-float(asked.prompt_token_ids[0]), -1.0), prompt_tokens=len(asked.prompt_token_ids))


@dataclass
class SlowJudge:
    """Answers after `delay_s`, records every batch; `fail` chooses the batches that raise."""

    delay_s: float = 0.0
    fail: Callable[[int], BaseException | None] = lambda _: None
    batches: list[list[Question]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        self.batches.append(list(questions))
        error = self.fail(len(self.batches) - 1)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.under_way -= 1
        if error is not None:
            raise error
        return [answer_to(q) for q in questions]
