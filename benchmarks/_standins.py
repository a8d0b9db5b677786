"""Timed stand-ins for the three lanes: real Ray actors that take exactly as long as they are told to."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import ray

from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import Feedback, Group, LoadReceipt, Prompt, Rollout, Span, StepReport, Weights

PAYLOAD_TOKENS = 512


class TimedRollout:
    """Decodes `slots` groups together, the rest queues; each takes `seconds`, give or take `spread` of it."""

    def __init__(self, seconds: float, spread: float, *, name: str, slots: int = 8) -> None:
        self._seconds, self._spread, self.name = seconds, spread, name
        self._slots = asyncio.Semaphore(slots)
        self._version = 0

    async def stream(self, work: Sequence[Assignment]) -> AsyncIterator[GenerationReport | Group]:
        tasks = [asyncio.ensure_future(self._one(item)) for item in work]
        for done in asyncio.as_completed(tasks):
            group, span = await done
            yield GenerationReport(
                ordinal=group.ordinal,
                attempt=group.attempt,
                head=group.head,
                num_tokens=group.num_tokens,
                nbytes=8 * PAYLOAD_TOKENS,
                spans=(span,),
            )
            yield group

    async def _one(self, item: Assignment) -> tuple[Group, Span]:
        jitter = random.Random(item.grant.ordinal).uniform(-1, 1)
        async with self._slots:
            version, start = self._version, time.time()
            await asyncio.sleep(self._seconds * (1 + self._spread * jitter))
        span = Span(lane="generate", worker=self.name, name="decode", start_s=start, end_s=time.time())
        return make_group(item.grant.ordinal, item.grant.attempt, item.prompt, version), span

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        self._version = weights.version
        return LoadReceipt(
            engine=self.name,
            version=weights.version,
            fingerprint=weights.fingerprint,
            checksum=weights.fingerprint,
            canary_logprobs=weights.canary_logprobs,
            pause_s=0.0,
        )


class TimedJudge:
    """Labels one group after the other, `seconds` each."""

    def __init__(self, seconds: float, *, name: str) -> None:
        self._seconds, self.name = seconds, name
        self._engine = asyncio.Lock()

    async def label(self, group: Group) -> tuple[LabelReport, Feedback]:
        async with self._engine:
            start = time.time()
            await asyncio.sleep(self._seconds)
        rewards = tuple(1.0 for _ in group.rollouts)
        report = LabelReport(
            ordinal=group.ordinal,
            attempt=group.attempt,
            num_rollouts=len(rewards),
            num_valid=len(rewards),
            reward_mean=1.0,
            labels=len(rewards),
            invalid=0,
            questions=len(rewards),
            cache_hits=0,
            prompt_tokens=0,
            cached_tokens=0,
            nbytes=100,
            spans=(Span(lane="label", worker=self.name, name="judge", start_s=start, end_s=time.time()),),
        )
        return report, Feedback(ordinal=group.ordinal, attempt=group.attempt, rewards_G=rewards, labels=())


class TimedLearner:
    """Takes `seconds` a step."""

    def __init__(self, seconds: float, *, name: str) -> None:
        self._seconds, self.name = seconds, name

    def step(self, step: int, *payloads: Any) -> tuple[StepReport, Weights, Weights]:
        start = time.time()
        time.sleep(self._seconds)
        span = Span(lane="learn", worker=self.name, name=f"step {step}", start_s=start, end_s=time.time())
        weights = make_weights(step + 1)
        return StepReport(step=step, metrics={"learn/reward/mean": 1.0}, spans=(span,)), weights, weights


def make_weights(version: int) -> Weights:
    """A version that is told apart by its name alone."""
    return Weights(
        version=version,
        payload=np.zeros(1024, np.uint8),
        fingerprint=f"stand-in {version}",
        canary_token_ids=((1, 2),),
        canary_logprobs=((-1.0,),),
    )


def make_group(ordinal: int, attempt: int, prompt: Prompt, version: int) -> Group:
    """A group of one answer, of realistic size."""
    rollout = Rollout(
        token_ids=np.zeros(PAYLOAD_TOKENS, np.int32),
        logprobs=np.zeros(PAYLOAD_TOKENS, np.float32),
        segments=((version, PAYLOAD_TOKENS),),
        finish_reason="stop",
        text="",
    )
    return Group(
        ordinal=ordinal,
        attempt=attempt,
        prompt=prompt,
        prompt_token_ids=np.zeros(32, np.int32),
        rollouts=(rollout,),
    )


TimedRolloutActor = ray.remote(num_cpus=0)(TimedRollout)
TimedJudgeActor = ray.remote(num_cpus=0)(TimedJudge)
TimedLearnerActor = ray.remote(num_cpus=0)(TimedLearner)
