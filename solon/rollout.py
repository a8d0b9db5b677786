"""Writes answers: a rollout engine, the prompts' chat template and the seeds. A Ray actor hosts this class."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass

import numpy as np

from solon.engines.base import Completion, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.runner import EngineRunner
from solon.protocols import Assignment, GenerationReport
from solon.records import Group, LoadReceipt, Prompt, Rollout, Sampling, Span, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """What a rollout lane needs to know besides its engine."""

    sampling: Sampling
    group_size: int
    """Answers per prompt, G."""
    seed: int
    """The run's seed: with it, ordinal, draw and index fix the seed of every answer."""


class RolloutWorker:
    """`async for report, group in worker.generate(assignments)`: groups as they finish."""

    def __init__(self, engine: EngineConfig, settings: RolloutSettings, *, name: str) -> None:
        self.name = name
        self._settings = settings
        self._runner = EngineRunner(lambda: build_engine(engine, name=name), name=name)
        self._max_model_len = engine.max_model_len

    async def start(self) -> None:
        """Build and warm the engine; the first request costs seconds that no measurement should contain."""
        await self._runner.ready()
        prompt = self._runner.tokenizer.encode("warm up") or [0]
        await self._runner.generate(
            [Request(request_id="warm-up", prompt_token_ids=tuple(prompt[:8]), max_tokens=2, seed=0)]
        )
        self._runner.drain_spans()

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Group]]:
        """Generate all groups of the chunk together; yields each when its last answer is finished."""
        prompts = [self._encode(item.prompt) for item in work]
        answers = self._runner.generate_each(
            [self._requests(item, prompt_ids) for item, prompt_ids in zip(work, prompts, strict=True)]
        )
        finishing = [
            asyncio.ensure_future(self._group(item, prompt_ids, completions))
            for item, prompt_ids, completions in zip(work, prompts, answers, strict=True)
        ]
        try:
            for done in asyncio.as_completed(finishing):
                group = await done
                yield self._report(group), group
        finally:
            for task in finishing:
                task.cancel()

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """One answer to each prompt, sampled as in training: for evaluation."""
        requests = [
            self._request(f"answer-{seed}-{index}", self._encode(prompt), seed_of(seed, "answer", index))
            for index, prompt in enumerate(prompts)
        ]
        completions = await self._runner.generate(requests)
        self._runner.drain_spans()
        return [self._runner.tokenizer.decode(c.token_ids.tolist()) for c in completions]

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """Take over a policy version between two decoding steps; running answers go on with the new weights."""
        return await self._runner.load_weights(weights)

    async def beat(self) -> float:
        """A sign of life: seconds for which the engine has had work without finishing a step."""
        return self._runner.stalled_s

    async def close(self) -> None:
        await self._runner.close()

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        # The end of a conversation matters most: a prompt that leaves no room for the answer loses its beginning.
        room = self._max_model_len - self._settings.sampling.max_tokens
        return tuple(self._runner.tokenizer.encode_chat(prompt.messages)[-room:])

    def _requests(self, item: Assignment, prompt_ids: tuple[int, ...]) -> list[Request]:
        grant = item.grant
        return [
            self._request(
                f"{grant.ordinal}-{grant.attempt}-{index}",
                prompt_ids,
                seed_of(self._settings.seed, grant.ordinal, grant.draw, index),
            )
            for index in range(self._settings.group_size)
        ]

    def _request(self, request_id: str, prompt_ids: tuple[int, ...], seed: int) -> Request:
        sampling = self._settings.sampling
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt_ids,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=seed,
        )

    async def _group(
        self, item: Assignment, prompt_ids: tuple[int, ...], answers: Awaitable[list[Completion]]
    ) -> Group:
        completions = await answers
        return Group(
            ordinal=item.grant.ordinal,
            attempt=item.grant.attempt,
            prompt=item.prompt,
            prompt_token_ids=np.array(prompt_ids, np.int32),
            rollouts=tuple(self._rollout(completion) for completion in completions),
        )

    def _rollout(self, completion: Completion) -> Rollout:
        return Rollout(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            segments=completion.segments,
            finish_reason=completion.finish_reason,
            text=self._runner.tokenizer.decode(completion.token_ids.tolist()),
        )

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


def seed_of(*parts: object) -> int:
    """A 31-bit seed from anything printable; engines take no larger ones."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def group_nbytes(group: Group) -> int:
    """Approximate size of a group in the object store."""
    per_rollout = sum(r.token_ids.nbytes + r.logprobs.nbytes + len(r.text) + 200 for r in group.rollouts)
    return per_rollout + group.prompt_token_ids.nbytes + sum(len(m.content) for m in group.prompt.messages)
