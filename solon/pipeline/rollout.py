"""Generates answers: a rollout engine, the prompts' chat template and the seeds. A Ray actor hosts this class."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.engines.base import Completion, Engine, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.runner import EngineRunner
from solon.engines.stops import end_of, stops_of
from solon.engines.thinking import AnswerText
from solon.engines.tokens import ChatPrompt
from solon.errors import InputError, PromptRefusedError
from solon.files.cutting import fitted
from solon.files.prompts import prompt_id
from solon.pipeline.salvage import Followed, Reporter, continued, joined
from solon.protocols import Assignment, GenerationReport
from solon.records import FinishReason, Group, LoadReceipt, Prompt, Rollout, Salvage, Sampling, Span, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """Settings of a rollout lane, apart from its engine."""

    sampling: Sampling
    group_size: int
    """Answers per prompt, G."""
    seed: int
    """The run's seed; with ordinal, sample_index and index it determines the seed of every answer."""
    salvage_every_s: float = 0.0
    """Seconds between two reports of the new tokens of unfinished answers; 0: no reports."""
    cuts_overlong: bool = False
    """Cut a prompt that leaves no room for the answer, instead of refusing it."""


class RolloutWorker:
    """`async for report, group in worker.generate(assignments)`: groups as they finish."""

    def __init__(
        self,
        engine: EngineConfig,
        settings: RolloutSettings,
        *,
        name: str,
        build: Callable[..., Engine] = build_engine,
    ) -> None:
        self.name = name
        self._settings = settings
        self._runner = EngineRunner(lambda: build(engine, name=name), name=name)
        self._reporter = Reporter(self._runner.news, every_s=settings.salvage_every_s)
        self._max_model_len = engine.max_model_len

    async def start(self) -> None:
        """Build and warm up the engine; the first request costs seconds that no measurement should include."""
        await self._runner.ready()
        prompt = self._runner.tokenizer.encode("warm up") or [0]
        request = self._request("warm-up", tuple(prompt[:8]), 0)
        filters = replace(request.filters, min_tokens=0)
        await self._runner.generate([replace(request, max_tokens=2, filters=filters)])
        self._runner.drain_spans()

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Group] | Salvage]:
        """Generate all groups of the chunk together. Yields each group when its last answer is finished, and now and
        then the new tokens of the unfinished ones."""
        work, prompts = self._fit(work)
        begun = [joined(item.grant.salvage, self._settings.group_size) for item in work]
        requests = [
            self._requests(item, prompt.token_ids, answers)
            for item, prompt, answers in zip(work, prompts, begun, strict=True)
        ]
        completions = self._generate_each(requests)
        done: asyncio.Queue[Group | Salvage | BaseException] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(_into(done, self._group(item, prompt, answers, after)))
            for item, prompt, answers, after in zip(work, prompts, begun, completions, strict=True)
        ]
        followed = {item.grant.ordinal: self._followed(item, done.put_nowait) for item in work}
        try:
            while followed:
                item = await done.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Salvage):
                    yield item
                else:
                    self._reporter.leave(followed.pop(item.ordinal))
                    yield self._report(item), item
        finally:
            for task in tasks:
                task.cancel()
            for group in followed.values():
                self._reporter.leave(group)

    def _followed(self, item: Assignment, report: Callable[[Salvage | BaseException], None]) -> Followed:
        ids = tuple(_request_id(item, index) for index in range(self._settings.group_size))
        group = Followed(item.grant.ordinal, item.grant.attempt, ids, report)
        self._reporter.follow(group)
        return group

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """One answer to each prompt, sampled as in training: for evaluation."""
        encoded = [self._encode(prompt)[1] for prompt in prompts]
        requests = [
            self._request(f"answer-{seed}-{index}", prompt.token_ids, seed_of(seed, "answer", index))
            for index, prompt in enumerate(encoded)
        ]
        completions = await self._runner.generate(requests)
        self._runner.drain_spans()
        return [
            self._read(c.token_ids, prompt, c.finish_reason).text
            for c, prompt in zip(completions, encoded, strict=True)
        ]

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """Load a policy version between two decoding steps; running answers continue with the new weights."""
        return await self._runner.load_weights(weights)

    async def heartbeat(self) -> float:
        """Seconds for which the engine has had work without finishing a step."""
        return self._runner.stalled_s

    async def close(self) -> None:
        await self._runner.close()

    def _fit(self, work: Sequence[Assignment]) -> tuple[list[Assignment], list[ChatPrompt]]:
        """The work, with prompts as the model was given them, and their encodings."""
        encoded = [self._encode(item.prompt) for item in work]
        fitting = [replace(item, prompt=prompt) for item, (prompt, _) in zip(work, encoded, strict=True)]
        return fitting, [opened for _, opened in encoded]

    def _encode(self, prompt: Prompt) -> tuple[Prompt, ChatPrompt]:
        """The encoding of a prompt, and the prompt itself, cut if necessary. Nothing is cut silently: prompts checked
        before the start are not cut here (`solon.pipeline.prompt_screen`)."""
        tokenizer = self._runner.tokenizer
        shown = f"prompt {prompt.prompt_id} ({prompt.messages[-1].content[:60]!r})"
        room = self._max_model_len - self._settings.sampling.max_tokens
        try:
            opened = tokenizer.open_chat(prompt.messages)
            if len(opened.token_ids) > room and self._settings.cuts_overlong:
                messages = fitted(prompt.messages, room=room, length=lambda m: len(tokenizer.encode_chat(m)))
                if messages is not None:
                    prompt = replace(prompt, messages=messages, prompt_id=prompt_id(messages))
                    opened = tokenizer.open_chat(messages)
        except PromptRefusedError as error:
            raise InputError(f"{shown} is refused by the policy's chat template: {error}; remove it") from None
        if len(opened.token_ids) > room:
            raise InputError(
                f"{shown} has {len(opened.token_ids)} tokens, expected at most {room}: {self._max_model_len} of the "
                f"engine less {self._settings.sampling.max_tokens} for the answer; raise max_model_len, or remove the "
                "prompt"
            )
        return prompt, opened

    def _read(self, token_ids: NDArray[np.int32], prompt: ChatPrompt, reason: FinishReason) -> AnswerText:
        """An answer as judges and people read it, without its ending."""
        tokenizer, ids, end = self._runner.tokenizer, token_ids.tolist(), ""
        if reason == "stop":
            stop, stop_token_ids = self._stops
            ids, end = end_of(tokenizer, ids, stop=stop, stop_token_ids=stop_token_ids)
        read = tokenizer.read_answer(ids, opens_thought=prompt.opens_thought)
        return replace(read, text=read.text.removesuffix(end).strip()) if end else read

    def _generate_each(self, batches: Sequence[Sequence[Request]]) -> list[Awaitable[list[Completion]]]:
        """As the runner's; a group whose answers were all salvaged complete sends no request."""
        asked = iter(self._runner.generate_each([batch for batch in batches if batch]))
        return [next(asked) if batch else _nothing() for batch in batches]

    def _requests(
        self, item: Assignment, prompt_ids: tuple[int, ...], answers: Sequence[Completion | None]
    ) -> list[Request]:
        """The remaining work: whole answers, or continuations of the tokens that a lost engine wrote."""
        grant = item.grant
        requests = []
        for index, begun in enumerate(answers):
            parts: tuple[object, ...] = (self._settings.seed, grant.ordinal, grant.sample_index, index)
            written: tuple[int, ...] = ()
            if begun is not None:
                if begun.finish_reason != "abort":
                    continue
                written = tuple(begun.token_ids.tolist())
                parts = (*parts, "after", len(written))
            request = self._request(_request_id(item, index), prompt_ids + written, seed_of(*parts))
            requests.append(replace(request, max_tokens=request.max_tokens - len(written), written=len(written)))
        return requests

    def _request(self, request_id: str, prompt_ids: tuple[int, ...], seed: int) -> Request:
        sampling = self._settings.sampling
        stop, stop_token_ids = self._stops
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt_ids,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            filters=sampling.filters,
            stop=stop,
            stop_token_ids=stop_token_ids,
            seed=seed,
        )

    async def _group(
        self,
        item: Assignment,
        prompt: ChatPrompt,
        begun: Sequence[Completion | None],
        answers: Awaitable[list[Completion]],
    ) -> Group:
        completions = {completion.request_id: completion for completion in await answers}
        whole = [continued(answer, completions.get(_request_id(item, index))) for index, answer in enumerate(begun)]
        return Group(
            ordinal=item.grant.ordinal,
            attempt=item.grant.attempt,
            prompt=item.prompt,
            prompt_token_ids=np.array(prompt.token_ids, np.int32),
            rollouts=tuple(self._rollout(answer, prompt) for answer in whole if answer is not None),
            shown=prompt.shown,
        )

    def _rollout(self, answer: Completion, prompt: ChatPrompt) -> Rollout:
        read = self._read(answer.token_ids, prompt, answer.finish_reason)
        return Rollout(
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            segments=answer.segments,
            finish_reason=answer.finish_reason,
            text=read.text,
            thought=read.thought,
            is_cut=read.is_unfinished or answer.finish_reason == "length",
        )

    @cached_property
    def _stops(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Strings and ids that end an answer, in addition to the model's own."""
        return stops_of(self._runner.tokenizer, self._settings.sampling)

    def _report(self, group: Group) -> GenerationReport:
        spans = tuple(
            Span(lane="generate", worker=self.name, name="decode", start_s=start, end_s=end)
            for start, end in self._runner.drain_spans()
        )
        return GenerationReport(
            ordinal=group.ordinal,
            attempt=group.attempt,
            head=group.head,
            num_tokens=group.num_tokens,
            nbytes=group_nbytes(group),
            spans=spans,
            cache_use=self._runner.drain_cache_use(),
        )


def _request_id(item: Assignment, index: int) -> str:
    return f"{item.grant.ordinal}-{item.grant.attempt}-{index}"


async def _into(queue: asyncio.Queue[Any], work: Awaitable[Any]) -> None:
    """Put the result, or the error, into the queue."""
    try:
        queue.put_nowait(await work)
    except Exception as error:
        queue.put_nowait(error)


async def _nothing() -> list[Completion]:
    return []


def seed_of(*parts: object) -> int:
    """A 31-bit seed from anything printable; engines accept no larger ones."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def group_nbytes(group: Group) -> int:
    """Approximate size of a group in the object store."""
    per_rollout = sum(
        r.token_ids.nbytes + r.logprobs.nbytes + len(r.text) + len(r.thought) + 200 for r in group.rollouts
    )
    return per_rollout + group.prompt_token_ids.nbytes + sum(len(m.content) for m in group.prompt.messages)
