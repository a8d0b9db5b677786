"""Asks a local engine next-token questions, optionally after a written critique."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from solon.engines.base import Completion, Request
from solon.engines.runner import EngineRunner
from solon.feedback.prompting.prompts import JudgePrompts
from solon.feedback.questions import Answer, Question

LITTLE_MASS = 0.5


class EngineAsk:
    """`answers = await EngineAsk(runner, prompts)(questions)`

    critique_tokens: above 0, the judge first writes at most this many tokens about the question, and its verdict is
    read after them. The critique is placed as data between the question and the verdict.
    """

    def __init__(self, runner: EngineRunner, prompts: JudgePrompts, *, critique_tokens: int = 0) -> None:
        self._runner = runner
        self._prompts = prompts
        self._critique_tokens = critique_tokens
        self._ids = itertools.count()
        self.calls = 0
        """Questions that reached the engine."""

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Raises RunFailedError when the engine is lost."""
        self.calls += len(questions)
        if not self._critique_tokens:
            completions = await self._read(questions)
            return [self._answer(q, c) for q, c in zip(questions, completions, strict=True)]
        stems = [self._prompts.before_verdict(question) for question in questions]
        written = await self._runner.generate([self._request(stem, self._critique_tokens) for stem in stems])
        # A leading or unfinished thought of the judge is not a critique.
        texts = [self._runner.tokenizer.read_answer(completion.token_ids.tolist()).text for completion in written]
        continued = [
            self._prompts.after_critique(question, stem, text)
            for question, stem, text in zip(questions, stems, texts, strict=True)
        ]
        completions = await self._read(continued)
        return [
            self._answer(question, completion, critique=text, spent=len(critique.token_ids))
            for question, completion, text, critique in zip(continued, completions, texts, written, strict=True)
        ]

    async def _read(self, questions: Sequence[Question]) -> list[Completion]:
        return await self._runner.generate(
            [
                Request(
                    request_id=f"q{next(self._ids)}",
                    prompt_token_ids=question.prompt_token_ids,
                    max_tokens=1,
                    label_ids=question.label_ids,
                )
                for question in questions
            ]
        )

    def _request(self, stem: tuple[int, ...], max_tokens: int) -> Request:
        # Greedy: the same question gets the same critique, so that the verdict may be cached.
        return Request(request_id=f"c{next(self._ids)}", prompt_token_ids=stem, max_tokens=max_tokens, temperature=0.0)

    def _answer(self, question: Question, completion: Completion, *, critique: str = "", spent: int = 0) -> Answer:
        mass = math.fsum(math.exp(min(logprob, 0.0)) for logprob in completion.label_logprobs)
        is_weak = mass < LITTLE_MASS and len(completion.token_ids) > 0
        return Answer(
            tuple(completion.label_logprobs),
            prompt_tokens=len(question.prompt_token_ids),
            cached_tokens=completion.cached_tokens,
            output_tokens=spent,
            detail=critique,
            top=self._runner.tokenizer.decode(completion.token_ids.tolist()) if is_weak else "",
        )
