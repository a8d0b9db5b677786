"""A rank that follows: it does what the first one tells, in the same order, until that one ends.

follower = Follower(config, name="rollout-0", rank=1, build=...)
follower.give(weights)      # from another thread, before the first rank loads them
follower.run(meeting)       # returns when the first rank has closed the engine
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from solon.engines.base import Engine, EngineConfig
from solon.engines.failures import check_canaries
from solon.engines.ranks.leading import Build, Key, Order, key_of
from solon.engines.ranks.meeting import Meeting, OtherRank
from solon.errors import AttestationError, EngineFailedError, InputError, PayloadLostError
from solon.records import Weights

_REFUSED = (InputError, AttestationError, PayloadLostError)
"""The call was refused, on the first rank too, which decides what follows."""
_KEPT = 2
"""Versions that may wait at the same time: the one that is sent, and one that replaces it."""


class Follower:
    """Runs in one thread; `give` and `stalled_s` are for others."""

    def __init__(self, config: EngineConfig, *, name: str, rank: int, build: Build) -> None:
        self.name = f"{name}, rank {rank} of {config.tensor_parallel}"
        self._config, self._engine_name, self._rank, self._build = config, name, rank, build
        self._given: dict[Key, Weights] = {}
        self._lock = threading.Lock()
        self._busy_since: float | None = None

    @property
    def stalled_s(self) -> float:
        """Seconds since it began what it does now; 0 while it waits for the first rank."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def give(self, weights: Weights) -> None:
        """Weights that the first rank is going to load."""
        with self._lock:
            self._given[key_of(weights)] = weights
            while len(self._given) > _KEPT:
                del self._given[next(iter(self._given))]

    def run(self, meeting: Meeting) -> None:
        """Build the engine and follow. Raises InputError when the model cannot be loaded, EngineFailedError when this
        rank computes something else than the first one, or cannot compute."""
        ranks = OtherRank(self._engine_name, self._rank, self._config.tensor_parallel, meeting)
        engine: Any = None
        try:
            store = ranks.join(meeting, timeout_s=self._config.rank_timeout_s)
            engine = self._build(self._config, name=self.name, ranks=ranks, store=store)
            with ranks.together():
                pass
            while (orders := ranks.hear()) is not None:
                self._busy_since = time.monotonic()
                for order in orders:
                    self._obey(engine, order)
                self._busy_since = None
        finally:
            self._busy_since = None
            ranks.close()
            if engine is not None:
                engine.close()

    def _obey(self, engine: Any, order: Order) -> None:
        if engine.trail != order.trail:
            raise EngineFailedError(
                f"{self.name} has sampled other tokens than the first rank: the memory or the device of one of them "
                "is damaged"
            )
        for request in order.added:
            engine.add(request)
        if order.aborted:
            engine.abort(order.aborted)
        if order.call:
            with suppress(*_REFUSED):
                self._call(engine, order.call, order.arguments)

    def _call(self, engine: Engine, call: str, arguments: Sequence[Any]) -> None:
        if call == "step":
            engine.step()
        elif call == "load_weights":
            engine.load_weights(self._weights(*arguments))
        elif call == "check_weights":
            weights = self._weights(*arguments)
            with self._lock:
                self._given.pop(key_of(weights))  # its chunks are not needed any more
            engine.check_weights(weights)
        elif call == "checksum":
            engine.checksum()
        else:
            check_canaries(self.name, engine.sequence_logprobs(*arguments))

    def _weights(self, key: Key) -> Weights:
        with self._lock:
            weights = self._given.get(key)
        if weights is None:
            raise EngineFailedError(f"{self.name} was not given weights {key[0]}, which the first rank loads")
        return weights
