"""The interfaces of workers, ledger and observer that the loop uses. On Ray they are thin proxies of actors; in unit
tests they are fakes.

A *payload reference* stands for a payload. On Ray it is a list with one ObjectRef, so that it moves directly from its
producer to its consumer; of weights it is their manifest with references to chunks (`actors.chunks`). In a unit test
it is the record itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from solon.errors import WorkerLostError
from solon.ledger.ledger import Grant, Lease, Work
from solon.records import LoadReceipt, Prompt, Salvage, Span, StepReport, Weights

PayloadRef = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A group to generate: its grant and its prompt."""

    grant: Grant
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationReport:
    """A generated group without its payload."""

    ordinal: int
    attempt: int
    head: int
    """Oldest policy version in the group."""
    num_tokens: int
    nbytes: int
    spans: tuple[Span, ...] = ()
    cache_use: float | None = None
    """Largest share of the engine's key-value cache in use since its last report, 0..1; None: it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """A labelled group without its payload. `num_valid` rollouts have a reward."""

    ordinal: int
    attempt: int
    num_rollouts: int
    num_valid: int
    reward_mean: float | None
    labels: int
    invalid: int
    questions: int
    cache_hits: int
    prompt_tokens: int
    cached_tokens: int
    nbytes: int
    invalid_by_status: tuple[tuple[str, int], ...] = ()
    pairs: tuple[tuple[float, float | None, bool | None], ...] = ()
    """(raw margin, position offset, whether both orders agree) of each valid comparison."""
    spans: tuple[Span, ...] = ()


class Lane(Protocol):
    """A worker of a pool, as the loop sees it; down while its process is being replaced."""

    name: str
    groups_at_once: int
    """Groups that it processes at the same time."""

    @property
    def is_up(self) -> bool:
        """Whether it is neither being replaced nor given up."""
        ...

    async def ready(self) -> bool:
        """Waits while it is being replaced. False: it was given up. Raises the error that ended the run."""
        ...

    def enlist(
        self, *, spare: Callable[[], bool], rejoin: Callable[[], Awaitable[None]], on_down: Callable[[], None]
    ) -> None:
        """Join a pool. spare: whether the pool can do without this lane. rejoin: awaited by a replacement before it is
        up. on_down: called when the process is lost."""
        ...

    def watch(self) -> None:
        """Start sending heartbeats."""
        ...

    async def retire(self) -> None:
        """Leave the pool permanently: unanswered calls end with WorkerLeftError, and the process ends."""
        ...


class RolloutLane(Lane, Protocol):
    """One engine that generates answers."""

    def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """Yields groups as they finish, in any order, and now and then, without a payload, the tokens that a group
        gained since the last report. Raises WorkerLostError when the remaining groups are lost."""
        ...

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Load a new policy version between two decoding steps. Raises WorkerLostError."""
        ...

    @property
    def incarnation(self) -> int:
        """Number of earlier processes that hosted this engine."""
        ...

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """Report that this process did not answer and must be replaced."""
        ...


class JudgeLane(Lane, Protocol):
    """One feedback model that labels."""

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """Raises WorkerLostError when the worker is lost, PayloadLostError when the group is."""
        ...


class Learner(Protocol):
    """The learner."""

    name: str

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """One optimiser step: its report, the new weights without their payload, and a reference to the full weights.

        Raises PayloadLostError when a group of the batch can no longer be read.
        """
        ...


class LedgerPort(Protocol):
    """`solon.ledger.async_ledger.AsyncLedger`."""

    async def reserve(self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = ...) -> list[Grant] | None: ...
    async def next_generated(
        self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = ...
    ) -> list[Work] | None: ...
    async def lease(self, step: int) -> Lease | None: ...
    async def keep(self, ordinal: int, attempt: int, *, head: int, salvage: Salvage) -> bool: ...
    async def commit_generation(
        self, ordinal: int, attempt: int, *, head: int, nbytes: int, payload: PayloadRef
    ) -> bool: ...
    async def commit_labels(self, ordinal: int, attempt: int, *, nbytes: int, payload: PayloadRef) -> bool: ...
    async def requeue(self, attempts: Mapping[int, int], reason: str, *, is_loss: bool = ...) -> list[int]: ...
    async def return_work(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = ...) -> bool: ...
    async def drop(self, ordinal: int, attempt: int, reason: str) -> bool: ...
    async def commit(self, step: int, token: int) -> bool: ...
    async def abort(self, step: int, token: int) -> bool: ...
    async def publish(self, version: int) -> bool: ...
    async def close(self) -> list[int]: ...
    async def end(self) -> None: ...
    def wake(self) -> None: ...
    def attempts(self, ordinals: Sequence[int]) -> dict[int, int]: ...


class Observer(Protocol):
    """Receives every event of the run; writes files and draws the live view. Must not block."""

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None: ...
    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None: ...
    def stepped(self, lease: Lease, report: StepReport) -> None: ...
    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None: ...
    def event(self, name: str, **fields: Any) -> None: ...
