"""Writes answers: a rollout engine, the prompts' chat template and the seeds. A Ray actor hosts this class."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.cutting import fitted
from solon.engines.base import Completion, Engine, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.runner import EngineRunner
from solon.engines.stops import end_of, stops_of
from solon.engines.thinking import AnswerText
from solon.engines.tokens import ChatPrompt
from solon.errors import InputError, PromptRefusedError
from solon.prompts import prompt_id
from solon.protocols import Assignment, GenerationReport
from solon.records import FinishReason, Group, LoadReceipt, Prompt, Rollout, Salvage, Sampling, Span, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """What a rollout lane needs to know besides its engine."""

    sampling: Sampling
    group_size: int
    """Answers per prompt, G."""
    seed: int
    """The run's seed: with it, ordinal, draw and index fix the seed of every answer."""
    salvage_every_s: float = 0.0
    """How often to tell how far long answers have come; 0: never."""
    cuts_overlong: bool = False
    """Cut a prompt that leaves no room for the answer, instead of refusing it."""


SALVAGE_TOKENS = 64
"""A group is told of again when it has so many tokens more: fewer are not worth the message."""


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
        self._max_model_len = engine.max_model_len

    async def start(self) -> None:
        """Build and warm the engine; the first request costs seconds that no measurement should contain."""
        await self._runner.ready()
        prompt = self._runner.tokenizer.encode("warm up") or [0]
        request = self._request("warm-up", tuple(prompt[:8]), 0)
        filters = replace(request.filters, min_tokens=0)
        await self._runner.generate([replace(request, max_tokens=2, filters=filters)])
        self._runner.drain_spans()

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Group] | Salvage]:
        """Generate all groups of the chunk together; yields each when its last answer is finished, and now and then
        how far the others have come."""
        work, prompts = self._fit(work)
        requests = [self._requests(item, prompt.token_ids) for item, prompt in zip(work, prompts, strict=True)]
        answers = self._generate_each(requests)
        done: asyncio.Queue[Group | Salvage | BaseException] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(_into(done, self._group(item, prompt, completions)))
            for item, prompt, completions in zip(work, prompts, answers, strict=True)
        ]
        if self._settings.salvage_every_s:
            tasks.append(asyncio.ensure_future(_into(done, self._tell(done, work, prompts, requests))))
        left = len(work)
        try:
            while left:
                item = await done.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Salvage):
                    yield item
                else:
                    left -= 1
                    yield self._report(item), item
        finally:
            for task in tasks:
                task.cancel()

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
        """Take over a policy version between two decoding steps; running answers go on with the new weights."""
        return await self._runner.load_weights(weights)

    async def beat(self) -> float:
        """A sign of life: seconds for which the engine has had work without finishing a step."""
        return self._runner.stalled_s

    async def close(self) -> None:
        await self._runner.close()

    def _fit(self, work: Sequence[Assignment]) -> tuple[list[Assignment], list[ChatPrompt]]:
        """The work with prompts as they were answered, and how the model reads them."""
        encoded = [self._encode(item.prompt) for item in work]
        fitting = [replace(item, prompt=prompt) for item, (prompt, _) in zip(work, encoded, strict=True)]
        return fitting, [opened for _, opened in encoded]

    def _encode(self, prompt: Prompt) -> tuple[Prompt, ChatPrompt]:
        """How the model reads it, and the prompt itself unless it had to be cut. Nothing is cut in silence: what is
        checked before the start does not come here (`solon.prompt_screen`)."""
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
        """What judges and people read of an answer, without what ended it."""
        tokenizer, ids, end = self._runner.tokenizer, token_ids.tolist(), ""
        if reason == "stop":
            stop, stop_token_ids = self._stops
            ids, end = end_of(tokenizer, ids, stop=stop, stop_token_ids=stop_token_ids)
        read = tokenizer.read_answer(ids, opens_thought=prompt.opens_thought)
        return replace(read, text=read.text.removesuffix(end).strip()) if end else read

    def _generate_each(self, batches: Sequence[Sequence[Request]]) -> list[Awaitable[list[Completion]]]:
        """As the runner's; a group whose answers were all salvaged whole asks for nothing."""
        asked = iter(self._runner.generate_each([batch for batch in batches if batch]))
        return [next(asked) if batch else _nothing() for batch in batches]

    def _requests(self, item: Assignment, prompt_ids: tuple[int, ...]) -> list[Request]:
        """What is still to be written: all of it, or what follows the tokens that a lost engine had written."""
        grant = item.grant
        requests = []
        for index, begun in enumerate(self._salvaged(item)):
            parts: tuple[object, ...] = (self._settings.seed, grant.ordinal, grant.draw, index)
            written: tuple[int, ...] = ()
            if begun is not None:
                if begun.finish_reason != "abort":
                    continue
                written = tuple(begun.token_ids.tolist())
                parts = (*parts, "after", len(written))
            request = self._request(_request_id(item, index), prompt_ids + written, seed_of(*parts))
            requests.append(replace(request, max_tokens=request.max_tokens - len(written), written=len(written)))
        return requests

    def _salvaged(self, item: Assignment) -> Sequence[Rollout | None]:
        if item.grant.salvage is None:
            return (None,) * self._settings.group_size
        rollouts: Sequence[Rollout | None] = item.grant.salvage.rollouts
        return rollouts

    async def _tell(
        self,
        done: asyncio.Queue[Any],
        work: Sequence[Assignment],
        prompts: Sequence[ChatPrompt],
        requests: Sequence[Sequence[Request]],
    ) -> None:
        """Put a Salvage into the queue for every group that has come far enough since the last one."""
        told = {item.grant.ordinal: sum(len(r.token_ids) for r in self._salvaged(item) if r) for item in work}
        names = [request.request_id for batch in requests for request in batch]
        while True:
            await asyncio.sleep(self._settings.salvage_every_s)
            completions = {c.request_id: c for c in await self._runner.so_far(names)}
            for item, prompt in zip(work, prompts, strict=True):
                salvage = self._salvage(item, prompt, completions)
                if salvage is not None and salvage.num_tokens >= told[salvage.ordinal] + SALVAGE_TOKENS:
                    told[salvage.ordinal] = salvage.num_tokens
                    done.put_nowait(salvage)

    def _salvage(self, item: Assignment, prompt: ChatPrompt, completions: Mapping[str, Completion]) -> Salvage | None:
        """How far a group has come; None: it is finished, or not begun."""
        if not any(_request_id(item, index) in completions for index in range(self._settings.group_size)):
            return None
        rollouts = tuple(
            self._rollout(begun, completions.get(_request_id(item, index)), prompt)
            for index, begun in enumerate(self._salvaged(item))
        )
        return Salvage(ordinal=item.grant.ordinal, attempt=item.grant.attempt, rollouts=rollouts)

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

    async def _group(self, item: Assignment, prompt: ChatPrompt, answers: Awaitable[list[Completion]]) -> Group:
        completions = {completion.request_id: completion for completion in await answers}
        rollouts = [
            self._rollout(begun, completions.get(_request_id(item, index)), prompt)
            for index, begun in enumerate(self._salvaged(item))
        ]
        return Group(
            ordinal=item.grant.ordinal,
            attempt=item.grant.attempt,
            prompt=item.prompt,
            prompt_token_ids=np.array(prompt.token_ids, np.int32),
            rollouts=tuple(rollout for rollout in rollouts if rollout is not None),
            shown=prompt.shown,
        )

    def _rollout(self, begun: Rollout | None, completion: Completion | None, prompt: ChatPrompt) -> Rollout | None:
        """An answer from what a lost engine had written of it and what was written since."""
        if completion is None:
            return begun
        token_ids, logprobs, segments = completion.token_ids, completion.logprobs, completion.segments
        if begun is not None:
            token_ids = np.concatenate([begun.token_ids, token_ids])
            logprobs = np.concatenate([begun.logprobs, logprobs])
            segments = joined_segments(begun.segments, segments)
        read = self._read(token_ids, prompt, completion.finish_reason)
        return Rollout(
            token_ids=token_ids,
            logprobs=logprobs,
            segments=segments,
            finish_reason=completion.finish_reason,
            text=read.text,
            thought=read.thought,
            is_cut=read.is_unfinished or completion.finish_reason == "length",
        )

    @cached_property
    def _stops(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Strings and ids that end an answer, besides the model's own ends."""
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
        )


def joined_segments(
    first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """Runs of versions one after the other.

    >>> joined_segments(((3, 10), (4, 2)), ((4, 5),))
    ((3, 10), (4, 7))
    """
    if first and second and first[-1][0] == second[0][0]:
        return (*first[:-1], (first[-1][0], first[-1][1] + second[0][1]), *second[1:])
    return (*first, *second)


def _request_id(item: Assignment, index: int) -> str:
    return f"{item.grant.ordinal}-{item.grant.attempt}-{index}"


async def _into(queue: asyncio.Queue[Any], work: Awaitable[Any]) -> None:
    """The result, or the error, goes to the queue."""
    try:
        queue.put_nowait(await work)
    except Exception as error:
        queue.put_nowait(error)


async def _nothing() -> list[Completion]:
    return []


def seed_of(*parts: object) -> int:
    """A 31-bit seed from anything printable; engines take no larger ones."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def group_nbytes(group: Group) -> int:
    """Approximate size of a group in the object store."""
    per_rollout = sum(
        r.token_ids.nbytes + r.logprobs.nbytes + len(r.text) + len(r.thought) + 200 for r in group.rollouts
    )
    return per_rollout + group.prompt_token_ids.nbytes + sum(len(m.content) for m in group.prompt.messages)
