"""Empties machines that are about to go: a spot notice, `ray drain-node`, a scale-down.

A lane on such a machine is replaced on another one if a place is found in time, and leaves in good order before the
machine goes. What it could not finish is handed back with the tokens written so far. The last lane of a pool stays when
no replacement has joined; it is then lost with its machine and replaced as after any loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from solon.elasticity.config import ElasticityConfig
from solon.elasticity.elastic_pool import ElasticPool

DRAIN_EVERY_S = 5.0
"""Seconds between two questions which machines go. A spot machine is announced 30 to 120 seconds ahead."""
UNKNOWN_S = 120.0
"""Seconds that a machine without an announced end is taken to have."""


class Draining:
    """`draining.notice({"rollout-1": 110.0, "learner": 110.0})`, again and again."""

    def __init__(
        self,
        config: ElasticityConfig,
        pools: Sequence[ElasticPool[Any]],
        *,
        emit: Callable[..., None],
        begin: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """begin: starts a task."""
        self._config = config
        self._pools = pools
        self._emit = emit
        self._begin = begin
        self._known: set[str] = set()
        self._moving: set[str] = set()

    def notice(self, left_s: Mapping[str, float | None]) -> None:
        """These workers are on machines that go in so many seconds; None: it is not known when. A worker is dealt with
        once, until it is on a machine that stays."""
        for worker in left_s.keys() - self._known:
            left = left_s[worker]
            self._emit("worker_draining", worker=worker, left_s=None if left is None else round(left, 1))
            for pool in self._pools:
                # Ray may not answer once: a worker that is already moving is then announced again.
                if worker not in self._moving and any(lane.name == worker for lane in pool.pool):
                    self._begin(self._move(pool, worker, UNKNOWN_S if left is None else left))
        self._known = set(left_s)

    def concerns(self, worker: str) -> bool:
        """Whether the worker is on a machine that goes."""
        return worker in self._known

    async def _move(self, pool: ElasticPool[Any], worker: str, left_s: float) -> None:
        self._moving.add(worker)
        loop = asyncio.get_running_loop()
        ends = loop.time() + max(0.0, left_s - self._config.drain_margin_s)
        leave_s = min(self._config.leave_within_s, (ends - loop.time()) / 2)
        replacing = asyncio.ensure_future(pool.add(place_within_s=max(0.0, ends - leave_s - loop.time())))
        try:
            await asyncio.wait({replacing}, timeout=max(0.0, ends - leave_s - loop.time()))
            if not await pool.leave(worker, within_s=max(0.0, min(leave_s, ends - loop.time()))):
                # The last one: it works until its replacement has joined, or the machine goes.
                await asyncio.wait({replacing}, timeout=max(0.0, ends - loop.time()))
                await pool.leave(worker, within_s=max(0.0, ends - loop.time()))
            await replacing
        finally:
            self._moving.discard(worker)
            replacing.cancel()
            await asyncio.gather(replacing, return_exceptions=True)
