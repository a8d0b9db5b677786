"""Asks a local engine next-token questions; optionally the judge first writes a critique or a thought.

question ──▶ log-probs of the labels
question ──▶ critique or thought ──▶ question with it ──▶ log-probs of the labels
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from solon.engines.base import Completion, Request
from solon.engines.runner import EngineRunner
from solon.feedback.prompting.prompts import JudgePrompts
from solon.feedback.prompting.thoughts import THOUGHT_SAMPLING
from solon.feedback.questions import Answer, Question, question_digest
from solon.records import NO_FILTERS
from solon.verdicts import Status

LITTLE_MASS = 0.5


@dataclass(frozen=True, slots=True)
class _Written:
    """What a judge wrote before its verdict, and the question that follows; None: no verdict can follow."""

    question: Question | None
    text: str
    tokens: int
    why: str = ""
    """Why no verdict can follow."""


class EngineAsk:
    """`answers = await EngineAsk(runner, prompts)(questions)`

    critique_tokens: above 0, the judge first writes at most this many tokens about the question, and its verdict is
    read after them. The critique is placed as data between the question and the verdict.
    thought_tokens: above 0, a thinking judge first writes a thought of at most this many tokens. The questions of
    `prompts` end inside a thought. A thought that does not end gives no verdict.
    """

    def __init__(
        self, runner: EngineRunner, prompts: JudgePrompts, *, critique_tokens: int = 0, thought_tokens: int = 0
    ) -> None:
        self._runner = runner
        self._prompts = prompts
        self._critique_tokens = critique_tokens
        self._thought_tokens = thought_tokens
        self._ids = itertools.count()
        self.calls = 0
        """Questions that reached the engine."""

    async def warm_up(self, question: Question) -> None:
        """Read one verdict, without a critique or thought before it."""
        await self._read([question])

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Raises RunFailedError when the engine is lost."""
        self.calls += len(questions)
        if self._thought_tokens:
            return await self._after(await self._think(questions))
        if self._critique_tokens:
            return await self._after(await self._criticise(questions))
        completions = await self._read(questions)
        return [self._answer(q, c) for q, c in zip(questions, completions, strict=True)]

    async def _criticise(self, questions: Sequence[Question]) -> list[_Written]:
        stems = [self._prompts.before_critique(question) for question in questions]
        # Greedy: the same question gets the same critique, so that the verdict may be cached.
        written = await self._runner.generate([self._request(stem, self._critique_tokens) for stem in stems])
        # A leading or unfinished thought of the judge is not a critique.
        texts = [self._runner.tokenizer.read_answer(completion.token_ids.tolist()).text for completion in written]
        return [
            _Written(self._prompts.after_critique(question, stem, text), text, len(completion.token_ids))
            for question, stem, text, completion in zip(questions, stems, texts, written, strict=True)
        ]

    async def _think(self, questions: Sequence[Question]) -> list[_Written]:
        tokenizer = self._runner.tokenizer
        stops = tokenizer.thought_stop()
        stems = [self._prompts.before_thought(question) for question in questions]
        written = await self._runner.generate(
            [
                self._request(stem, self._thought_tokens, stops=stops, seed=int(question_digest(question)[:8], 16) >> 1)
                for question, stem in zip(questions, stems, strict=True)
            ]
        )
        found = []
        for question, stem, completion in zip(questions, stems, written, strict=True):
            ids = completion.token_ids.tolist()
            end = tokenizer.end_of_thought(ids)
            if end is None:
                why = f"the judge ended its turn inside its thought, after {len(ids)} tokens"
                if completion.finish_reason == "length":
                    why = f"the judge's thought did not end within {len(ids)} tokens; raise feedback.thought_tokens"
                found.append(_Written(None, "", len(ids), why))
                continue
            thought = tokenizer.read_answer(ids[:end], opens_thought=True).thought
            found.append(_Written(self._prompts.after_thought(question, stem, ids[:end]), thought, len(ids)))
        return found

    async def _after(self, written: Sequence[_Written]) -> list[Answer]:
        """Verdicts of the questions that can be asked; a failed answer in place of the others."""
        asked = [one.question for one in written if one.question is not None]
        completions = iter(await self._read(asked) if asked else [])
        return [
            self._unfinished(one)
            if one.question is None
            else self._answer(one.question, next(completions), written=one.text, spent=one.tokens)
            for one in written
        ]

    def _unfinished(self, written: _Written) -> Answer:
        return Answer(
            (),
            output_tokens=written.tokens,
            failure=Status.TRUNCATED,
            detail=written.why,
        )

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

    def _request(
        self,
        stem: tuple[int, ...],
        max_tokens: int,
        *,
        stops: tuple[tuple[str, ...], tuple[int, ...]] = ((), ()),
        seed: int | None = None,
    ) -> Request:
        """seed: of a sampled text; None: greedy."""
        return Request(
            request_id=f"c{next(self._ids)}",
            prompt_token_ids=stem,
            max_tokens=max_tokens,
            temperature=0.0 if seed is None else THOUGHT_SAMPLING.temperature,
            filters=NO_FILTERS if seed is None else THOUGHT_SAMPLING.filters,
            stop=stops[0],
            stop_token_ids=stops[1],
            seed=seed or 0,
        )

    def _answer(self, question: Question, completion: Completion, *, written: str = "", spent: int = 0) -> Answer:
        mass = math.fsum(math.exp(min(logprob, 0.0)) for logprob in completion.label_logprobs)
        is_weak = mass < LITTLE_MASS and len(completion.token_ids) > 0
        return Answer(
            tuple(completion.label_logprobs),
            prompt_tokens=len(question.prompt_token_ids),
            cached_tokens=completion.cached_tokens,
            output_tokens=spent,
            detail=written,
            top=self._runner.tokenizer.decode(completion.token_ids.tolist()) if is_weak else "",
        )
