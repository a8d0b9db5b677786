"""The lanes of a run, each with a guard: to the loop a lane is down for a while, never dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from solon.clock import Clock
from solon.errors import PayloadLostError, RunFailedError, WorkerLostError
from solon.feedback.interfaces import Item
from solon.ledger.ledger import Lease, Work
from solon.protocols import Assignment, GenerationReport, LabelReport, PayloadRef
from solon.records import Feedback, Group, LoadReceipt, Prompt, Salvage, StepReport, Weights
from solon.recovery.guard import GivenUpError, Guard, RecoveryConfig
from solon.recovery.workers import JudgeProcess, LearnerProcess, PoolProcess, RolloutProcess
from solon.verdicts import Verdict

T = TypeVar("T")
L = TypeVar("L", bound="SupervisedLane")


async def ask_any(lanes: Collection[L], call: Callable[[L], Awaitable[T]]) -> T:
    """Send a call that any of these lanes can answer to the first that is up, or else to the first that recovers.

    Raises RunFailedError when all lanes were given up, and the error that ended a lane and the run.
    """
    while True:
        left = [lane for lane in lanes if not lane.guard.given_up]
        if not left:
            raise RunFailedError(f"{', '.join(lane.guard.name for lane in lanes)}: all were given up")
        lane = next((lane for lane in left if lane.guard.is_up), None) or await _first_back(left)
        with suppress(GivenUpError):
            return await call(lane)


async def _first_back(lanes: Sequence[L]) -> L:
    """The first lane whose replacement is up or given up."""
    waiting = {asyncio.ensure_future(lane.guard.ready()): lane for lane in lanes}
    try:
        (done, *_), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done.result()
        return waiting[done]
    finally:
        for task in waiting:
            task.cancel()


class SupervisedLane:
    """Common to all guarded lanes: whether the worker behind them is up."""

    def __init__(self, name: str, guard: Guard, process: Any) -> None:
        self.name = name
        self.guard = guard
        self.process = process
        """What the guard replaces; on Ray it knows its actor."""

    @property
    def is_up(self) -> bool:
        """Whether it is neither being replaced nor given up."""
        return self.guard.is_up

    async def ready(self) -> bool:
        """See `Guard.ready`."""
        return await self.guard.ready()

    @property
    def incarnation(self) -> int:
        """Number of earlier processes that hosted this worker."""
        return self.guard.incarnation

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """See `Guard.lost`."""
        self.guard.lost(error, incarnation)


class PoolLane(SupervisedLane):
    """A supervised lane that may join and leave a pool: a `solon.protocols.Lane`."""

    def __init__(self, process: PoolProcess, guard: Guard) -> None:
        super().__init__(process.name, guard, process)
        self.groups_at_once = process.groups_at_once
        self._process = process

    def enlist(
        self, *, spare: Callable[[], bool], rejoin: Callable[[], Awaitable[None]], on_down: Callable[[], None]
    ) -> None:
        """See `Lane.enlist`."""
        self.guard.spare, self.guard.rejoin, self.guard.on_down = spare, rejoin, on_down

    def watch(self) -> None:
        """See `Guard.start`."""
        self.guard.start()

    async def retire(self) -> None:
        """See `Lane.retire`."""
        await self.guard.retire()
        self._process.end()


class SupervisedRollout(PoolLane):
    """A `RolloutLane` whose engine is replaced when it is lost."""

    def __init__(self, engine: RolloutProcess, guard: Guard) -> None:
        super().__init__(engine, guard)
        self._engine = engine

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """See `RolloutLane.generate`."""
        stream = self._engine.generate(work)
        try:
            while (item := await self.guard.call(anext(stream, None))) is not None:
                yield item
        finally:
            if isinstance(stream, AsyncGenerator):
                with suppress(Exception):  # the stream of a dead engine may raise anything
                    await stream.aclose()

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """One sampled answer to each prompt."""
        return await self.guard.retry(lambda: self._engine.answer(prompts, seed=seed))

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Not guarded: a replacement loads weights before it is up."""
        return await self._engine.load_weights(weights)


class SupervisedJudge(PoolLane):
    """A `JudgeLane` whose process is replaced when it is lost."""

    def __init__(self, judge: JudgeProcess, guard: Guard) -> None:
        super().__init__(judge, guard)
        self._judge = judge

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """See `JudgeLane.label`."""
        return await self.guard.call(self._judge.label(work))

    async def label_group(self, group: Group) -> Feedback:
        """The feedback on a given group, for evaluation and audit."""
        return await self.guard.retry(lambda: self._judge.label_group(group))

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts computed without the cache."""
        return await self.guard.retry(lambda: self._judge.judge_fresh(items))


class SupervisedLearner(SupervisedLane):
    """A `Learner` that is replaced in the same state: loaded from the last checkpoint, then trained again on the
    batches since.

    The same batches give the same weights (`learners.core.trainer`), so engines keep their version and nothing is
    rolled back. References to the batches since the last checkpoint are kept for this.
    """

    def __init__(
        self,
        learner: LearnerProcess,
        config: RecoveryConfig,
        *,
        checkpoint: str,
        emit: Callable[..., None],
        clock: Clock | None = None,
    ) -> None:
        # Repeating a step call would train twice, so a learner whose answer is lost is replaced.
        guard = Guard(self, config, emit=emit, rejoin=self._train_again, repeatable=False, clock=clock)
        super().__init__(learner.name, guard, learner)
        self._learner = learner
        self._config = config
        self._clock = clock or Clock()
        self._checkpoint = checkpoint
        self._since: list[Lease | float] = []
        """Batches trained and KL factors set since the checkpoint, in order."""
        self._again = self._since
        """Those that a replacement trains again."""
        self._staged = (0, 0)
        """The incarnation whose state was staged, and how many of these it had trained or set."""
        self._in_order = asyncio.Lock()
        """A KL factor is set either before a state is staged or after it."""
        self._fingerprint = ""
        self.on_weights: Callable[[Weights, PayloadRef], None] = lambda manifest, payload_ref: None
        """Called with every version that a new learner recomputes: the first copy may be lost with its machine."""

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """Raises PayloadLostError when a group of the batch can no longer be read."""
        while True:
            await self.guard.ready()
            try:
                result = await self._step(lease)
            except WorkerLostError:
                continue
            self._since.append(lease)
            self._fingerprint = result[1].fingerprint
            return result

    async def raise_kl(self, factor: float) -> float:
        """Multiply the KL coefficient from the next step on; returns the new one."""
        async with self._in_order:
            result = await self.guard.retry(lambda: self._learner.raise_kl(factor))
            self._since.append(factor)
        return result

    async def stage(self, *, copies: bool) -> None:
        """Take the present state for `write`. copies: steps may run before it is written."""
        async with self._in_order:
            await self.guard.retry(lambda: self._learner.stage(copies=copies))
            self._staged = self.guard.incarnation, len(self._since)

    async def write(self, directory: str) -> None:
        """Write the staged state. Raises WorkerLostError when the learner was lost, and the staged state with it."""
        incarnation, _ = self._staged
        if incarnation != self.guard.incarnation:
            raise WorkerLostError(f"{self.name} was lost, and with it the state that it had staged")
        await self.guard.call(self._learner.write(directory))

    def saved(self, checkpoint: str) -> None:
        """A checkpoint of the staged state is complete: the batches before it are no longer needed, those trained while
        it was written are."""
        self._checkpoint = checkpoint
        self._since = self._since[self._staged[1] :]  # another list: a replacement may be going through this one
        self._staged = self._staged[0], 0

    async def restart(self, placed: Callable[[], None]) -> None:
        """See `solon.recovery.guard.Restartable`."""
        self._again = self._since  # a checkpoint may be completed while the one before it is loaded
        self.on_weights(*await self._learner.restart_from(self._checkpoint, placed))

    async def heartbeat(self) -> float:
        """See `solon.recovery.guard.Restartable`."""
        return await self._learner.heartbeat()

    async def _step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        return await self.guard.call(self._learner.step(lease), timeout_s=self._config.step_timeout_s)

    async def _train_again(self) -> None:
        """Bring a new learner to the state of the lost one."""
        fingerprint, steps = "", 0
        for done in self._again:
            if isinstance(done, float):
                await self._learner.raise_kl(done)
                continue
            try:
                _, manifest, payload_ref = await self._clock.within(
                    self._learner.step(done), self._config.step_timeout_s
                )
            except TimeoutError:
                raise WorkerLostError(f"{self.name} did not train step {done.step} again in time") from None
            except PayloadLostError as error:
                raise RunFailedError(
                    f"step {done.step} cannot be trained again on the new learner: {error}; start the same command "
                    "with --resume: it starts from the last checkpoint"
                ) from None
            fingerprint, steps = manifest.fingerprint, steps + 1
            self.on_weights(manifest, payload_ref)
        if steps:
            same = fingerprint == self._fingerprint
            self.guard.emit("learner_trained_again", steps=steps, same_weights=same)
