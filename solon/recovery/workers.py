"""The interfaces of a run's processes for their supervisors: one protocol for each role.

On Ray they are the remotes in `actors/`; in unit tests they are small fakes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from solon.feedback.interfaces import Item
from solon.ledger.ledger import Lease, Work
from solon.protocols import Assignment, GenerationReport, LabelReport, PayloadRef
from solon.records import Feedback, Group, LoadReceipt, Prompt, Salvage, StepReport, Weights
from solon.recovery.guard import Restartable
from solon.verdicts import Verdict


class PoolProcess(Restartable, Protocol):
    """A worker of a pool."""

    groups_at_once: int
    """Groups that it may process at the same time."""

    def end(self) -> None:
        """End the process immediately."""
        ...


class RolloutProcess(PoolProcess, Protocol):
    """A rollout engine."""

    def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """See `solon.protocols.RolloutLane.generate`."""
        ...

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """One sampled answer to each prompt."""
        ...

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Load a policy version. Raises WorkerLostError."""
        ...


class JudgeProcess(PoolProcess, Protocol):
    """A feedback model."""

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """See `solon.protocols.JudgeLane.label`."""
        ...

    async def label_group(self, group: Group) -> Feedback:
        """The feedback on a given group."""
        ...

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts computed without the cache."""
        ...


class LearnerProcess(Protocol):
    """A learner, which is replaced from a checkpoint."""

    name: str

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """See `solon.protocols.Learner.step`."""
        ...

    async def raise_kl(self, factor: float) -> float:
        """Multiply the KL coefficient; returns the new one."""
        ...

    async def stage(self, *, copies: bool) -> None:
        """Take the present state for `write`, in place of an earlier one. copies: steps may run before it is
        written."""
        ...

    async def write(self, directory: str) -> None:
        """Write the staged state; answered while steps run. May be called again after an error."""
        ...

    async def heartbeat(self) -> float:
        """See `solon.recovery.guard.Restartable.heartbeat`."""
        ...

    async def restart_from(self, checkpoint: str, placed: Callable[[], None]) -> tuple[Weights, PayloadRef]:
        """End the remaining process, start another one and load a checkpoint (empty: the model that the run started
        with). `placed` is called when it is placed on a node. Returns the weights that it then holds."""
        ...
