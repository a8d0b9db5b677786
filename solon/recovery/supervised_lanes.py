"""The lanes of a run with a guard each: the loop sees a lane that is away for a while, never a dead process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from solon.clock import Awake
from solon.errors import PayloadLostError, RunFailedError, WorkerLostError
from solon.feedback.interfaces import Item, Verdict
from solon.ledger.ledger import Lease, Work
from solon.protocols import Assignment, GenerationReport, LabelReport, PayloadRef
from solon.records import Group, LoadReceipt, Prompt, Salvage, StepReport, Weights
from solon.recovery.guard import GivenUpError, Guard, RecoveryConfig

T = TypeVar("T")
L = TypeVar("L", bound="Supervised")


class Supervised(Protocol):
    """A lane with a guard."""

    @property
    def guard(self) -> Guard: ...


async def ask_any(lanes: Sequence[L], call: Callable[[L], Awaitable[T]]) -> T:
    """The result of a call that any of these lanes can answer: the first one that is up, or that comes back first.

    Raises RunFailedError when all of them were given up, and what ended a lane and with it the run.
    """
    while True:
        left = [lane for lane in lanes if not lane.guard.given_up]
        if not left:
            raise RunFailedError(f"{', '.join(lane.guard.name for lane in lanes)}: all were given up")
        lane = next((lane for lane in left if lane.guard.is_up), None) or await _first_back(left)
        with suppress(GivenUpError):
            return await call(lane)


async def _first_back(lanes: Sequence[L]) -> L:
    """The lane whose wait for its replacement ends first, in whichever way."""
    waiting = {asyncio.ensure_future(lane.guard.ready()): lane for lane in lanes}
    try:
        (done, *_), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done.result()
        return waiting[done]
    finally:
        for task in waiting:
            task.cancel()


class SupervisedRollout:
    """A `RolloutLane` that comes back. `engine` is the process; `guard` replaces it."""

    def __init__(self, engine: Any, guard: Guard) -> None:
        self._engine = engine
        self.guard = guard
        self.name: str = engine.name
        self.groups_at_once: int = engine.groups_at_once

    @property
    def is_up(self) -> bool:
        return self.guard.is_up

    async def ready(self) -> bool:
        return await self.guard.ready()

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        stream = self._engine.generate(work)
        try:
            while (item := await self.guard.during(anext(stream, None))) is not None:
                yield item
        finally:
            with suppress(Exception):  # whatever the stream of a dead engine says of itself
                await stream.aclose()

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        return await self.guard.insist(lambda: self._engine.answer(prompts, seed=seed))

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        result: LoadReceipt = await self._engine.load_weights(weights)
        return result

    @property
    def incarnation(self) -> int:
        return self.guard.incarnation

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        self.guard.lost(error, incarnation)


class SupervisedJudge:
    """A `JudgeLane` that comes back."""

    def __init__(self, judge: Any, guard: Guard) -> None:
        self._judge = judge
        self.guard = guard
        self.name: str = judge.name
        self.groups_at_once: int = judge.groups_at_once

    @property
    def is_up(self) -> bool:
        return self.guard.is_up

    async def ready(self) -> bool:
        return await self.guard.ready()

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        return await self.guard.during(self._judge.label(work))

    async def label_group(self, group: Group) -> Any:
        """The feedback on a group that lives here: for evaluation and audit."""
        return await self.guard.insist(lambda: self._judge.label_group(group))

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts past the caches."""
        return await self.guard.insist(lambda: self._judge.judge_fresh(items))


class RestartableLearner(Protocol):
    """A learner's process."""

    name: str

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]: ...
    async def raise_kl(self, factor: float) -> float: ...
    async def save(self, directory: str) -> None: ...
    async def heartbeat(self) -> float: ...

    async def restart_from(self, checkpoint: str, placed: Callable[[], None]) -> tuple[Weights, PayloadRef]:
        """End what is left of it, begin another and load a checkpoint; empty: the model it began with. `placed` is
        called when it has a place on a node. Returns the weights it holds then."""
        ...


class SupervisedLearner:
    """A `Learner` that comes back as it was: from the last checkpoint, and trained again with what came since.

    The same batches give the same weights (learners.ppo), so engines go on with the version they hold and nothing is
    rolled back. What was trained since the last checkpoint is kept for that, as references.
    """

    def __init__(
        self,
        learner: RestartableLearner,
        config: RecoveryConfig,
        *,
        checkpoint: str,
        emit: Callable[..., None],
        awake: Awake | None = None,
    ) -> None:
        self.name = learner.name
        self._learner = learner
        self._config = config
        self._awake = awake or Awake()
        self._checkpoint = checkpoint
        self._since: list[Lease | float] = []
        """Batches trained and KL factors set since the checkpoint, in order."""
        self._fingerprint = ""
        self.on_weights: Callable[[Weights, PayloadRef], None] = lambda manifest, payload_ref: None
        """Given every version that a new learner makes again: those of the lost one may have gone with its machine."""
        # A step that is trained twice is another step: a learner whose answer is lost is made again.
        self.guard = Guard(self, config, emit=emit, rejoin=self._train_again, repeatable=False, awake=self._awake)

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """Raises PayloadLostError when a group of the batch cannot be read any more."""
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
        """Pull the policy back to the reference more strongly, from the next step on."""
        result = await self.guard.insist(lambda: self._learner.raise_kl(factor))
        self._since.append(factor)
        return result

    async def save(self, directory: str) -> None:
        await self.guard.insist(lambda: self._learner.save(directory))

    def saved(self, checkpoint: str) -> None:
        """A checkpoint of the present state is complete: what came before is not needed any more."""
        self._checkpoint, self._since = checkpoint, []

    async def restart(self, placed: Callable[[], None]) -> None:
        self.on_weights(*await self._learner.restart_from(self._checkpoint, placed))

    async def heartbeat(self) -> float:
        return await self._learner.heartbeat()

    async def _step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        return await self.guard.during(self._learner.step(lease), timeout_s=self._config.step_timeout_s)

    async def _train_again(self) -> None:
        """Bring a new learner to where the lost one was."""
        fingerprint, steps = "", 0
        for done in self._since:
            if isinstance(done, float):
                await self._learner.raise_kl(done)
                continue
            try:
                _, manifest, payload_ref = await self._awake.within(
                    self._learner.step(done), self._config.step_timeout_s
                )
            except TimeoutError:
                raise WorkerLostError(f"{self.name} did not train step {done.step} again in time") from None
            except PayloadLostError as error:
                raise RunFailedError(
                    f"step {done.step} cannot be trained again on the new learner: {error}; start the same command "
                    "with --resume: it goes on from the last checkpoint"
                ) from None
            fingerprint, steps = manifest.fingerprint, steps + 1
            self.on_weights(manifest, payload_ref)
        if steps:
            same = fingerprint == self._fingerprint
            self.guard.emit("learner_trained_again", steps=steps, same_weights=same)
