"""The exact cache: the same question to the same judge is asked once.

Key: digest of the judge's identity (weights, quantisation, engine numerics, tokenizer) and of the question's
token ids and label ids. Not in the key: run, time, calibration, thresholds; raw log-probs are kept and read
afresh, so that a new calibration costs no forward pass. A question that is being asked is not asked again: the
second caller waits for the first one's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from solon.feedback.questions import Answer, Ask, Question, question_digest


class CacheConfig(BaseModel):
    """`CacheConfig(entries=200_000)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: int = Field(200_000, ge=0)
    """Verdicts kept in memory; 0 turns the cache off."""
    path: str = ""
    """File in which verdicts are kept."""


class ExactCache:
    """`await cache.ask(questions)`: from memory where possible, else through `ask`, each question once.

    Failures are never kept: their waiters see the error, the next caller asks again. A caller that is cancelled
    takes nothing from those who wait for the same answer.
    """

    def __init__(self, ask: Ask, *, judge_digest: str, entries: int) -> None:
        self._ask = ask
        self._judge_digest = judge_digest
        self._entries = entries
        self._known: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        self._asking: dict[str, asyncio.Future[tuple[float, ...]]] = {}

    def key(self, question: Question) -> str:
        """Content address of a verdict."""
        return hashlib.sha256(f"{self._judge_digest}:{question_digest(question)}".encode()).hexdigest()

    async def close(self) -> None: ...

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions."""
        if self._entries == 0:
            return await self._ask(questions)
        keys = [self.key(question) for question in questions]
        fresh: dict[str, Question] = {}
        waiting: dict[str, asyncio.Future[tuple[float, ...]]] = {}
        for key, question in zip(keys, questions, strict=True):
            if key in self._known:
                self._known.move_to_end(key)
            elif key in self._asking:
                waiting[key] = self._asking[key]
            elif key not in fresh:
                fresh[key] = question
                self._asking[key] = asyncio.get_running_loop().create_future()
        known = {key: self._known[key] for key in keys if key in self._known}
        # A task of its own, so that it outlives a cancelled caller.
        asking = asyncio.ensure_future(self._ask_fresh(fresh))
        asking.add_done_callback(_retrieve)
        asked = await asyncio.shield(asking)
        for key, future in waiting.items():
            known[key] = await asyncio.shield(future)
        answers, paid = [], set[str]()
        for key in keys:
            if key in asked and key not in paid:
                paid.add(key)
                answers.append(asked[key])
            else:
                logprobs = asked[key].logprobs if key in asked else known[key]
                answers.append(Answer(logprobs, source="exact_cache"))
        return answers

    async def _ask_fresh(self, fresh: dict[str, Question]) -> dict[str, Answer]:
        if not fresh:
            return {}
        try:
            answers = await self._ask(list(fresh.values()))
            assert len(answers) == len(fresh), f"{len(answers)} answers to {len(fresh)} questions"
        except BaseException as error:
            for key in fresh:
                future = self._asking.pop(key)
                if isinstance(error, Exception):
                    future.set_exception(error)
                    future.exception()  # nobody may be waiting: that is not a lost error, the caller raises
                else:
                    future.cancel()
            raise
        for key, answer in zip(fresh, answers, strict=True):
            self._asking.pop(key).set_result(answer.logprobs)
            if answer.failure is not None or any(math.isnan(logprob) for logprob in answer.logprobs):
                continue  # a fault of the engine, not a verdict: asked again
            self._known[key] = answer.logprobs
            if len(self._known) > self._entries:
                self._known.popitem(last=False)
        return dict(zip(fresh, answers, strict=True))


def open_cache(ask: Ask, config: CacheConfig, *, judge_digest: str) -> ExactCache:
    """The cache in front of a judge, as configured."""
    return ExactCache(ask, judge_digest=judge_digest, entries=config.entries)


def _retrieve(task: asyncio.Task[dict[str, Answer]]) -> None:
    """Its error is the caller's; when the caller was cancelled, nobody's."""
    if not task.cancelled():
        task.exception()
