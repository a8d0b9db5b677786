"""Small honest fakes: they keep the contracts of the real lanes, at once and without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solon.clock import Clock
from solon.errors import WorkerLostError
from solon.files.prompts import PromptSource, prompt_id
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import Lease, LedgerConfig, Work
from solon.ledger.staleness import StalenessConfig
from solon.loop import Lanes
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import Feedback, Group, LoadReceipt, Message, Prompt, Rollout, StepReport, Weights


def make_prompt(text: str = "what color is the sky ?", *tags: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(prompt_id=prompt_id(messages), messages=messages, tags=tags)


def make_rollout(text: str = "blue", *, version: int = 0) -> Rollout:
    tokens = np.arange(1, 4, dtype=np.int32)
    return Rollout(
        token_ids=tokens,
        logprobs=np.full(3, -1.0, np.float32),
        segments=((version, 3),),
        finish_reason="stop",
        text=text,
    )


def make_group(
    ordinal: int = 0, *, texts: Sequence[str] = ("blue", "green"), version: int = 0, attempt: int = 0
) -> Group:
    return Group(
        ordinal=ordinal,
        attempt=attempt,
        prompt=make_prompt(),
        prompt_token_ids=np.arange(5, dtype=np.int32),
        rollouts=tuple(make_rollout(text, version=version) for text in texts),
    )


def make_weights(version: int) -> Weights:
    return Weights(
        version=version,
        chunks=(),
        fingerprint=f"weights-{version}",
        canary_token_ids=((1, 2, 3),),
        canary_logprobs=((-1.0 - version, -2.0),),
    )


@dataclass
class FakeRollout:
    """Generates at once, or after `delay_s`; `engine_version` is the version of its tokens."""

    name: str = "rollout-0"
    groups_at_once: int = 64
    delay_s: float = 0.0
    engine_version: int = 0
    loads_silently_fail: bool = False
    started: list[tuple[int, int]] = field(default_factory=list)
    """(ordinal, version at dispatch)"""

    @property
    def is_up(self) -> bool:
        return True

    async def ready(self) -> bool:
        return True

    def enlist(self, **_: Any) -> None: ...

    def watch(self) -> None: ...

    async def retire(self) -> None: ...

    def end(self) -> None: ...

    @property
    def incarnation(self) -> int:
        return 0

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        raise error

    async def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport, Any]]:
        for item in work:
            self.started.append((item.grant.ordinal, item.grant.version))
        for item in work:
            head = self.engine_version
            await asyncio.sleep(self.delay_s)
            group = make_group(item.grant.ordinal, version=head, attempt=item.grant.attempt)
            yield (
                GenerationReport(
                    ordinal=item.grant.ordinal, attempt=item.grant.attempt, head=head, num_tokens=6, nbytes=100
                ),
                group,
            )

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        logprobs = weights.canary_logprobs
        if self.loads_silently_fail:
            logprobs = make_weights(self.engine_version).canary_logprobs
        self.engine_version = weights.version
        return LoadReceipt(
            engine=self.name,
            version=weights.version,
            fingerprint=weights.fingerprint,
            checksum=f"checksum-{weights.version}",
            canary_logprobs=logprobs,
            pause_s=0.0,
        )


@dataclass
class FakeJudge:
    """Gives every rollout the reward 1; groups in `speechless` get no valid label."""

    name: str = "judge-0"
    groups_at_once: int = 64
    delay_s: float = 0.0
    speechless: frozenset[int] = frozenset()
    error: Exception | None = None

    @property
    def is_up(self) -> bool:
        return True

    async def ready(self) -> bool:
        return True

    def enlist(self, **_: Any) -> None: ...

    def watch(self) -> None: ...

    async def retire(self) -> None: ...

    def end(self) -> None: ...

    async def label(self, work: Work) -> tuple[LabelReport, Any]:
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        silent = work.ordinal in self.speechless
        rewards: tuple[float | None, ...] = (None, None) if silent else (1.0, 1.0)
        feedback = Feedback(ordinal=work.ordinal, attempt=work.attempt, rewards_G=rewards, labels=())
        return (
            LabelReport(
                ordinal=work.ordinal,
                attempt=work.attempt,
                num_rollouts=2,
                num_valid=0 if silent else 2,
                reward_mean=None if silent else 1.0,
                labels=2,
                invalid=2 if silent else 0,
                questions=2,
                cache_hits=0,
                prompt_tokens=10,
                cached_tokens=0,
                nbytes=10,
                invalid_by_status=(("low_mass", 2),) if silent else (),
            ),
            feedback,
        )


@dataclass
class FakeLearner:
    name: str = "learner"
    delay_s: float = 0.0
    batches: list[tuple[int, ...]] = field(default_factory=list)

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, Any]:
        await asyncio.sleep(self.delay_s)
        self.batches.append(lease.ordinals)
        weights = make_weights(lease.step + 1)
        return StepReport(step=lease.step, metrics={"learn/reward/mean": 1.0}), weights, weights


@dataclass
class Witness:
    """An observer that remembers."""

    staleness: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    generated_ordinals: list[int] = field(default_factory=list)
    labelled_ordinals: list[int] = field(default_factory=list)

    def generated(self, report: GenerationReport, payload_ref: Any) -> None:
        self.generated_ordinals.append(report.ordinal)

    def labelled(self, report: LabelReport, payload_ref: Any) -> None:
        self.labelled_ordinals.append(report.ordinal)

    def stepped(self, lease: Lease, report: StepReport) -> None:
        self.staleness += lease.staleness

    def published(self, version: int, receipts: Any, gap: float, span: Any) -> None:
        self.versions.append(version)

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))


def make_lanes(
    *,
    batch_groups: int = 4,
    steps: int = 5,
    staleness: StalenessConfig | None = None,
    rollout: Sequence[FakeRollout] | None = None,
    judges: Sequence[FakeJudge] | None = None,
    learner: FakeLearner | None = None,
    clock: Clock | None = None,
    **ledger: Any,
) -> tuple[Lanes, Witness]:
    rollout, clock = rollout or [FakeRollout()], clock or Clock()
    witness = Witness()
    lanes = Lanes(
        rollout=Pool(rollout),
        judges=Pool(judges or [FakeJudge()]),
        learner=learner or FakeLearner(),
        ledger=AsyncLedger(
            LedgerConfig(batch_groups=batch_groups, **ledger),
            staleness or StalenessConfig(),
            total_groups=batch_groups * steps,
            clock=clock,
        ),
        prompts=PromptSource([make_prompt(f"question {i} ?") for i in range(7)], seed=0),
        publication=Publication(
            rollout, settings=PublishConfig(logprob_tolerance=1e-3, timeout_s=5), initial=make_weights(0), clock=clock
        ),
        observer=witness,
        clock=clock,
    )
    lanes.ledger.listen(witness.event)
    return lanes, witness
