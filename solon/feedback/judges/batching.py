"""Sends questions of many groups to the judge in batches.

A batch is sent when it is full (questions or tokens), when its oldest question has waited long enough, or immediately
when the judge is idle. At most two batches are in flight: one in the engine, and one ready for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from solon.errors import RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.questions import Answer, Ask, Question

MAX_UNDER_WAY = 2


@dataclass(slots=True)
class _Waiting:
    question: Question
    future: asyncio.Future[Answer]


class Batcher:
    """`await batcher.ask(questions)`; concurrent callers share batches."""

    def __init__(self, ask: Ask, config: FeedbackConfig) -> None:
        self._ask = ask
        self._config = config
        self._waiting: list[_Waiting] = []
        self._tokens = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.batches = 0

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; raises the engine's error for their batch."""
        loop = asyncio.get_running_loop()
        mine = [_Waiting(question, loop.create_future()) for question in questions]
        self._waiting += mine
        self._tokens += sum(len(q.prompt_token_ids) for q in questions)
        # Other callers that are ready in this turn of the event loop join the batch first.
        loop.call_soon(self._flush_if_due)
        return list(await asyncio.gather(*(w.future for w in mine)))

    def _flush_if_due(self) -> None:
        while self._waiting and len(self._under_way) < MAX_UNDER_WAY and (self._is_full() or not self._under_way):
            self._flush()
        if self._waiting and len(self._under_way) < MAX_UNDER_WAY and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._config.batch_age_ms / 1000, self._flush_aged)

    def _flush_aged(self) -> None:
        self._timer = None
        if self._waiting and len(self._under_way) < MAX_UNDER_WAY:
            self._flush()

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._config.batch_questions or self._tokens >= self._config.batch_tokens

    def _flush(self) -> None:
        # Questions of a cancelled caller are not sent.
        self._waiting = [w for w in self._waiting if not w.future.done()]
        tokens, size = 0, 0
        for item in self._waiting[: self._config.batch_questions]:
            tokens += len(item.question.prompt_token_ids)
            if size and tokens > self._config.batch_tokens:
                break
            size += 1
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        self._tokens = sum(len(w.question.prompt_token_ids) for w in self._waiting)
        if not batch:
            return
        self.batches += 1
        task = asyncio.ensure_future(self._send(self._ordered(batch)))
        self._under_way.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._flush_if_due()

    def _ordered(self, batch: list[_Waiting]) -> list[_Waiting]:
        if self._config.batch_order == "prefix":
            # Questions with a common beginning follow each other, so that it is still in the engine's cache.
            batch.sort(key=lambda w: (w.question.prompt_token_ids, w.question.text))
        elif self._config.batch_order == "length":
            batch.sort(key=lambda w: len(w.question.prompt_token_ids) or len(w.question.text))
        return batch

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        try:
            answers = await self._ask([w.question for w in batch])
            assert len(answers) == len(batch), f"{len(answers)} answers to {len(batch)} questions"
            outcomes: list[Answer | BaseException] = list(answers)
        except asyncio.CancelledError:
            # The judge was cancelled. Its callers were not, so they get an error of their own.
            outcomes = [RunFailedError("the judge was stopped while questions to it were open")] * len(batch)
        except Exception as error:
            outcomes = [error] * len(batch)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue
            if isinstance(outcome, BaseException):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
