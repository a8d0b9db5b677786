"""What the loop needs of workers, ledger and observer. On Ray these are thin proxies of actors; in unit tests fakes.

A *payload reference* stands for a payload: on Ray a list with one ObjectRef, so that the payload itself moves
straight from the worker that made it to the worker that needs it; in a unit test the record itself.
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
    """A group to generate: the grant and the prompt it is for."""

    grant: Grant
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationReport:
    """A generated group without its payload."""

    ordinal: int
    attempt: int
    head: int
    """Oldest policy version in it."""
    num_tokens: int
    nbytes: int
    spans: tuple[Span, ...] = ()


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
    """A worker of a pool, as the loop sees it: down while its process is replaced."""

    name: str
    groups_at_once: int
    """Groups that it holds at the same time."""

    @property
    def is_up(self) -> bool:
        """It is neither being replaced nor given up."""
        ...

    async def ready(self) -> bool:
        """Waits while it is being replaced. False: it is given up. Raises what ended the run with it."""
        ...

    def enlist(
        self, *, spare: Callable[[], bool], rejoin: Callable[[], Awaitable[None]], on_down: Callable[[], None]
    ) -> None:
        """It belongs to a pool from now on. spare: whether the pool can do without it. rejoin: what a replacement waits
        for before it is up. on_down: called when its process is lost."""
        ...

    def watch(self) -> None:
        """Begin to ask for heartbeats."""
        ...

    async def retire(self) -> None:
        """It leaves its pool for good: calls that it has not answered end with WorkerLeftError, and its process
        ends."""
        ...


class RolloutLane(Lane, Protocol):
    """One engine that generates answers."""

    def generate(self, work: Sequence[Assignment]) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """Groups as they are finished, in any order; from time to time, without a payload, the tokens that a group has
        gained since the last time. Raises WorkerLostError: the rest will not come."""
        ...

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt:
        """Take over a new policy version between two decoding steps. Raises WorkerLostError."""
        ...

    @property
    def incarnation(self) -> int:
        """How many processes hosted it before the present one."""
        ...

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """That process did not answer: it is to be replaced."""
        ...


class JudgeLane(Lane, Protocol):
    """One feedback model that labels."""

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """Raises WorkerLostError when it is gone, PayloadLostError when the group is."""
        ...


class Learner(Protocol):
    """The learner."""

    name: str

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """One optimiser step: its report, the new weights without their payload, and a reference to all of them.

        Raises PayloadLostError when a group of the batch cannot be read any more.
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
    """Receives everything that happens; writes files, draws the live view. Must not block."""

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None: ...
    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None: ...
    def stepped(self, lease: Lease, report: StepReport) -> None: ...
    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None: ...
    def event(self, name: str, **fields: Any) -> None: ...
