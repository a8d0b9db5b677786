"""The first rank of an engine: it takes the calls, and the other ranks repeat them.

    engine = LeadingEngine(config, name="rollout-0", opened=lambda meeting: ...)

Requests and aborts are told together with the next step, one message a step. What changes no state (`unfinished`,
`has_work`) is answered here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.engines.base import Completion, Engine, EngineConfig, Request, TokenizerLike
from solon.engines.progress import NOTHING
from solon.engines.ranks.meeting import FirstRank, Meeting
from solon.records import WeightCheck, Weights

Key = tuple[int, int, str]
"""Version, incarnation of the learner, fingerprint: names weights that every rank was given."""
Build = Callable[..., Any]
"""`build(config, name=..., ranks=..., store=...)`: an engine with a `trail`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the other ranks do next."""

    trail: int
    """Of the first rank, before any of it: a rank with another one has computed something else."""
    added: tuple[Request, ...] = ()
    aborted: tuple[str, ...] = ()
    """After `added`."""
    call: str = ""
    """The engine's method."""
    arguments: tuple[Any, ...] = ()


class LeadingEngine:
    """Implements `Engine`. Build and use it in one thread."""

    def __init__(self, config: EngineConfig, *, name: str, opened: Callable[[Meeting], None], build: Build) -> None:
        """opened: receives the meeting, for the processes of the other ranks; the engine is built when all came."""
        self._ranks = FirstRank(name, config.tensor_parallel, timeout_s=config.rank_timeout_s)
        self._orders: list[Order] = []
        opened(self._ranks.open("127.0.0.1"))
        self._ranks.accept()
        try:
            self._own: Engine = build(config, name=name, ranks=self._ranks, store=self._ranks.store)
            with self._ranks.together():
                pass
        except BaseException:
            self._ranks.close()
            raise

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._own.name

    @property
    def version(self) -> int:
        """See `Engine.version`."""
        return self._own.version

    @property
    def tokenizer(self) -> TokenizerLike:
        """See `Engine.tokenizer`."""
        return self._own.tokenizer

    @property
    def dtype(self) -> str:
        """See `Engine.dtype`."""
        return self._own.dtype

    @property
    def trail(self) -> int:
        """Depends on every token computed so far."""
        trail: int = self._own.trail  # type: ignore[attr-defined]
        return trail

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        self._own.add(request)  # may refuse it
        self._orders.append(Order(trail=self.trail, added=(request,)))

    def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        self._own.abort(request_ids)
        self._orders.append(Order(trail=self.trail, aborted=tuple(request_ids)))

    def step(self) -> list[Completion]:
        """See `Engine.step`."""
        self._tell("step")
        return self._own.step()

    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return self._own.has_work()

    def unfinished(self, after: Mapping[str, int] = NOTHING) -> list[Completion]:
        """See `Engine.unfinished`."""
        return self._own.unfinished(after)

    def load_weights(self, weights: Weights) -> None:
        """See `Engine.load_weights`. Every rank verifies all chunks, and none loads what another one refuses."""
        self._tell("load_weights", key_of(weights))
        self._own.load_weights(weights)

    def check_weights(self, weights: Weights) -> WeightCheck:
        """See `Engine.check_weights`: every rank compares its own part."""
        self._tell("check_weights", key_of(weights))
        return self._own.check_weights(weights)

    def checksum(self) -> str:
        """See `Engine.checksum`: of all ranks."""
        self._tell("checksum")
        return self._own.checksum()

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.sequence_logprobs`."""
        self._tell("sequence_logprobs", tuple(map(tuple, sequences)))
        return self._own.sequence_logprobs(sequences)

    def close(self) -> None:
        """Frees the model, and lets the other ranks end."""
        self._ranks.close()
        self._own.close()

    def _tell(self, call: str, *arguments: Any) -> None:
        orders, self._orders = self._orders, []
        self._ranks.tell([*orders, Order(trail=self.trail, call=call, arguments=arguments)])


def key_of(weights: Weights) -> Key:
    """The name of these weights among the ranks."""
    return weights.version, weights.incarnation, weights.fingerprint
