"""Timed stand-ins for the three lanes: real Ray actors with configured durations.

They keep the properties of the real ones that recovery relies on: the same draw gives the same group, and the learner's
weights are a digest of every batch it was trained on, so a lost, duplicated or changed group is detected.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import ray

from solon.feedback.judges.identity import JudgeIdentity
from solon.ledger.ledger import Grant
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import Feedback, Group, LoadReceipt, Prompt, Rollout, Span, StepReport, Weights

PAYLOAD_TOKENS = 512
CHUNK = (np.zeros(1024, np.uint8),)
"""All tensors of a stand-in's weights."""


class TimedRollout:
    """Decodes `slots` groups concurrently, the rest queues; each takes `seconds`, give or take `spread` of it."""

    def __init__(
        self, seconds: float, spread: float, *, name: str, slots: int = 8, tokens: int = PAYLOAD_TOKENS
    ) -> None:
        self._seconds, self._spread, self.name, self._tokens = seconds, spread, name, tokens
        self._slots = asyncio.Semaphore(slots)
        self._version = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def heartbeat(self) -> float:
        return 0.0

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        return ["" for _ in prompts]

    async def stream(self, work: Sequence[Assignment]) -> AsyncIterator[GenerationReport | Group]:
        tasks = [asyncio.ensure_future(self._one(item)) for item in work]
        for done in asyncio.as_completed(tasks):
            group, span = await done
            yield GenerationReport(
                ordinal=group.ordinal,
                attempt=group.attempt,
                head=group.head,
                num_tokens=group.num_tokens,
                nbytes=8 * self._tokens,
                spans=(span,),
                cache_use=0.5,
            )
            yield group

    async def _one(self, item: Assignment) -> tuple[Group, Span]:
        jitter = random.Random(item.grant.ordinal).uniform(-1, 1)
        async with self._slots:
            version, start = self._version, time.time()
            await asyncio.sleep(self._seconds * (1 + self._spread * jitter))
        span = Span(lane="generate", worker=self.name, name="decode", start_s=start, end_s=time.time())
        return make_group(item.grant, item.prompt, version, tokens=self._tokens), span

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        for _ in weights.chunks:  # opened as an engine does: a lost one raises
            pass
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

    async def start(self) -> JudgeIdentity:
        texts = {field.name: "stand-in" for field in fields(JudgeIdentity) if field.type != "int"}
        return JudgeIdentity(**texts)

    async def heartbeat(self) -> float:
        return 0.0

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
        self._state = {"version": 0, "digest": "stand-in"}

    def chunks(self) -> Iterator[Any]:
        """Of every version."""
        yield CHUNK

    def start(self, checkpoint: str) -> Iterator[Any]:
        if checkpoint:
            self._state = json.loads((Path(checkpoint) / "learner.json").read_text())
        yield from self.chunks()
        yield make_weights(self._state["version"], self._state["digest"])

    @ray.method(concurrency_group="signs")
    def heartbeat(self) -> float:
        return 0.0

    def raise_kl(self, factor: float) -> float:
        return factor

    def stage(self, copies: bool) -> None:
        self._staged = json.dumps(self._state)

    @ray.method(concurrency_group="writes")
    def write(self, directory: str) -> None:
        (Path(directory) / "learner.json").write_text(self._staged)

    def step(self, step: int, *payloads: Any) -> Iterator[Any]:
        if step != self._state["version"]:
            raise ValueError(f"step {step} handed to a learner at version {self._state['version']}")
        start = time.time()
        time.sleep(self._seconds)
        span = Span(lane="learn", worker=self.name, name=f"step {step}", start_s=start, end_s=time.time())
        self._state = {"version": step + 1, "digest": batch_digest(self._state["digest"], payloads)}
        yield from self.chunks()
        metrics = {"learn/reward/mean": 1.0, "learn/reward_in_group/std": 0.5, "learn/kl_reference/mean": 0.01}
        report = StepReport(step=step, metrics=metrics, spans=(span,))
        yield report, make_weights(step + 1, self._state["digest"])


def batch_digest(before: str, payloads: Sequence[Any]) -> str:
    """A learner's digest after one more batch. `payloads`: group, feedback, group, feedback, ..."""
    digest = hashlib.sha256(before.encode())
    for group, feedback in zip(payloads[::2], payloads[1::2], strict=True):
        if group.ordinal != feedback.ordinal:
            raise ValueError(f"group {group.ordinal} came with the feedback of group {feedback.ordinal}")
        digest.update(f"{group.ordinal}:{group.prompt.prompt_id}:{feedback.rewards_G}".encode())
        digest.update(group.rollouts[0].token_ids.tobytes())
    return digest.hexdigest()


def make_weights(version: int, digest: str = "") -> Weights:
    """A version identified only by its name."""
    return Weights(
        version=version,
        chunks=(),
        fingerprint=f"stand-in {version} {digest}",
        canary_token_ids=((1, 2),),
        canary_logprobs=((-1.0,),),
    )


def make_group(grant: Grant, prompt: Prompt, version: int, *, tokens: int = PAYLOAD_TOKENS) -> Group:
    """A group of one answer, of realistic size, fixed by its ordinal and sample index."""
    token_ids = np.random.default_rng([grant.ordinal, grant.sample_index]).integers(0, 1000, tokens)
    rollout = Rollout(
        token_ids=token_ids.astype(np.int32),
        logprobs=np.zeros(tokens, np.float32),
        segments=((version, tokens),),
        finish_reason="stop",
        text="",
    )
    return Group(
        ordinal=grant.ordinal,
        attempt=grant.attempt,
        prompt=prompt,
        prompt_token_ids=np.zeros(32, np.int32),
        rollouts=(rollout,),
    )


TimedRolloutActor = ray.remote(num_cpus=0)(TimedRollout)
TimedJudgeActor = ray.remote(num_cpus=0)(TimedJudge)
TimedLearnerActor = ray.remote(num_cpus=0, concurrency_groups={"signs": 1, "writes": 1})(TimedLearner)
