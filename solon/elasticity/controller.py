"""Resizes the pools of a run while it trains: measures, decides, adds and removes lanes.

    async with Elasticity(config, pools, learned=..., batch_groups=16, in_flight=16, emit=recorder.event):
        await run_loop(...)

A change may take minutes (a node boots, a model loads, a lane finishes its groups), so it runs as a task; its pool is
left alone until it is complete. A lane that cannot be added is withdrawn, and its pool does not grow for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from solon.clock import Clock
from solon.elasticity.config import ElasticityConfig
from solon.elasticity.decide import Limits, Load, Past, PoolLoad, Size, decide
from solon.elasticity.draining import DRAIN_EVERY_S, Draining
from solon.elasticity.elastic_pool import ElasticPool
from solon.elasticity.service import MIX, ServiceFit
from solon.pipeline.usage import Usage

Learned = tuple[int, float]
"""Steps of the learner so far, and the seconds that it was busy with them."""


class Measured:
    """What a pool and the learner did between decisions."""

    def __init__(self, pools: Sequence[ElasticPool[Any]], learned: Callable[[], Learned], *, batch_groups: int) -> None:
        """learned: see `Learned`. batch_groups: groups in a step."""
        self._pools = pools
        self._learned = learned
        self._batch_groups = batch_groups
        self._fits: dict[str, ServiceFit] = {}
        self._usage: dict[str, Usage] = {}
        self._before = learned()
        self._learn_s: float | None = None

    def load(self, now_s: float, *, in_flight: float) -> Load:
        """The load after another window. in_flight: see `Load`."""
        self._add_learner()
        pools = {}
        for pool in self._pools:
            places = max([1.0, *(seat.lane.groups_at_once / 2 for seat in pool.seats)])  # the other half is queued
            fit = self._fits.setdefault(pool.name, ServiceFit(places=places))
            window = Usage()  # of all lanes: one of each would count with the weight of many in a large pool
            for seat in pool.pool.seats:
                usage, name = seat.usage, seat.lane.name
                window += usage.since(self._usage.get(name, Usage()))
                self._usage[name] = usage
            fit.add(window)
            pools[pool.name] = PoolLoad(size=pool.size, service=fit.service, places=places)
        return Load(now_s=now_s, learn_s=self._learn_s, in_flight=in_flight, pools=pools)

    def _add_learner(self) -> None:
        steps, busy_s = self._learned()
        done, took_s = steps - self._before[0], busy_s - self._before[1]
        if done > 0 and took_s > 0:
            each_s = took_s / done / self._batch_groups
            self._learn_s = each_s if self._learn_s is None else self._learn_s + MIX * (each_s - self._learn_s)
            self._before = steps, busy_s


class Elasticity:
    """Resizes pools between their bounds, and empties machines that are drained. Pools whose bounds are equal keep
    their size, and get it back after a drain."""

    def __init__(
        self,
        config: ElasticityConfig,
        pools: Sequence[ElasticPool[Any]],
        *,
        learned: Callable[[], Learned],
        batch_groups: int,
        in_flight: float,
        emit: Callable[..., None],
        drained: Callable[[], Awaitable[Mapping[str, float | None]]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """learned: see `Learned`. in_flight: see `solon.elasticity.decide.Load`. drained: seconds that are left to each
        worker whose machine is about to go, by name; None: not known. Nothing is asked without it."""
        self._config = config
        self._pools = pools
        self._emit = emit
        self._in_flight = in_flight
        self._clock = clock or Clock()
        self._past = Past()
        self._limits = Limits(
            pools={pool.name: pool.bounds for pool in pools},
            cooldown_s=config.cooldown_s,
            max_step=config.max_step,
            agreeing=config.agreeing,
            spare_share=config.spare_share,
            shrink_share=config.shrink_share,
        )
        self._measured = Measured(pools, learned, batch_groups=batch_groups)
        self._drained = drained
        self.draining = Draining(config, pools, emit=emit, begin=self._begin)
        """What was done about machines that go."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Elasticity:
        self._begin(self._decide_often())
        if self._drained is not None:
            self._begin(self._ask_often(self._drained))
        return self

    async def __aexit__(self, *error: object) -> None:
        """Withdraws what is not complete."""
        for task in list(self._tasks):
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception) and error[1] is None:
                raise outcome

    async def _decide_often(self) -> None:
        while True:
            await asyncio.sleep(self._config.every_s)
            self._decide()

    async def _ask_often(self, drained: Callable[[], Awaitable[Mapping[str, float | None]]]) -> None:
        while True:
            self.draining.notice(await drained())
            await asyncio.sleep(DRAIN_EVERY_S)

    def _decide(self) -> None:
        decision = decide(self._measured.load(self._clock.now(), in_flight=self._in_flight), self._limits, self._past)
        past = self._past
        for pool in self._pools:
            if pool.is_changing:  # its last change is not complete: nothing about it is decided
                continue
            past = past.with_pool(pool.name, decision.past.of(pool.name))
            size = decision.sizes[pool.name]
            if size.size != pool.size:
                self._begin(self._resize(pool, size))
        self._past = past

    async def _resize(self, pool: ElasticPool[Any], wanted: Size) -> None:
        config, before = self._config, pool.size
        self._emit("resized", pool=pool.name, before=before, after=wanted.size, reason=wanted.reason)
        if wanted.size < before:
            await pool.shrink(within_s=config.leave_within_s)
        elif not await pool.grow(wanted.size - before, place_within_s=config.place_timeout_s):
            self._past = self._past.blocked(pool.name, self._clock.now() + config.retry_after_s)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        # One that failed is kept: its error ends the run at its end, and is not lost.
        task.add_done_callback(lambda done: None if _has_failed(done) else self._tasks.discard(done))
        return task


def _has_failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None
