"""Exports the figures of a run through Ray: each node's agent offers them to Prometheus beside Ray's own metrics.

    driver ── ray.util.metrics, every 10 s ──▶ agent of the driver's node ◀── scrape ── Prometheus

On by default; `SOLON_RAY_METRICS=0` switches it off. No failure here ends a run: the first one is reported and ends the
export.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

from cluster.config.pools import PoolSpec
from cluster.launch import WorkerSet
from solon.errors import InputError, short
from solon.ledger.async_ledger import AsyncLedger
from solon.pipeline.pool import Pool
from solon.telemetry.exports import Metric, Moment, PoolMoment, RunExports
from solon.telemetry.totals import RunTotals

SWITCH = "SOLON_RAY_METRICS"
"""Environment variable: 0 exports nothing."""
SAMPLE_EVERY_S = 5.0
"""Half of the time after which Ray's processes send their metrics (`RAY_metrics_report_interval_ms`)."""
LANE_OF_ROLE = {"rollout": "generate", "judge": "label", "learner": "learn"}


class RayMeter:
    """Implements `solon.telemetry.exports.Meter`."""

    def __init__(self, run: str, *, say: Callable[[str], None]) -> None:
        """run: the label of all series. say: is told once why nothing is exported any more."""
        self._run = quote(run, safe=" ")  # Ray takes ASCII alone
        self._say = say
        self._known: dict[str, Any] = {}
        self._is_on = True

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Increase a counter."""
        # `inc` refuses 0, with which a series is made before its first increase.
        self._record(metric, lambda known: known._record(value, {"run": self._run, **labels}))

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        self._record(metric, lambda known: known.set(value, {"run": self._run, **labels}))

    def _record(self, metric: Metric, record: Callable[[Any], None]) -> None:
        if not self._is_on:
            return
        try:
            known = self._known.get(metric.name)
            if known is None:
                kind = Counter if metric.kind == "counter" else Gauge
                known = kind(metric.name, metric.meaning, tag_keys=("run", *metric.labels))
                self._known[metric.name] = known
            record(known)
        except Exception as error:
            self._is_on = False
            self._say(f"warning: the run's metrics are no longer exported through Ray: {type(error).__name__}: {error}")


def exports_for(
    run: str, totals: RunTotals, pools: Mapping[str, PoolSpec], *, say: Callable[[str], None]
) -> RunExports | None:
    """What exports the figures of a run, an observer of its loop; None: switched off. pools: by name. Raises
    InputError for another value of the switch than 0 and 1."""
    if not is_on():
        return None
    lanes = {name: LANE_OF_ROLE[pool.role] for name, pool in pools.items() if pool.role in LANE_OF_ROLE}
    return RunExports(totals, RayMeter(run, say=say), lanes=lanes)


def is_on() -> bool:
    """Whether figures are exported. Raises InputError."""
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise InputError(f"{SWITCH} is {short(value)}, expected 0 or 1; unset it to export metrics through Ray")
    return value == "1"


class Sampling:
    """`async with Sampling(exports, ...)`: takes a sample every few seconds, and one at the end."""

    def __init__(
        self,
        exports: RunExports | None,
        *,
        ledger: AsyncLedger,
        workers: WorkerSet,
        clock: Callable[[], float],
        every_s: float = SAMPLE_EVERY_S,
    ) -> None:
        """exports: None takes no samples. clock: seconds."""
        self._exports = exports
        self._ledger = ledger
        self._workers = workers
        self._clock = clock
        self._every_s = every_s
        self._moved = (-1, 0.0)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sampling:
        if self._exports is not None:
            self._task = asyncio.ensure_future(self._watch(self._exports))
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task is not None and self._exports is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._exports.sample(await self._look())

    async def _watch(self, exports: RunExports) -> None:
        while True:
            exports.sample(await self._look())
            await asyncio.sleep(self._every_s)

    async def _look(self) -> Moment:
        now = self._clock()
        if self._ledger.progress != self._moved[0]:
            self._moved = (self._ledger.progress, now)
        states: dict[str, list[str]] = {lane: [] for lane in LANE_OF_ROLE.values()}
        pools = {}
        for workers in self._workers.pools.values():
            lane = LANE_OF_ROLE.get(workers.spec.role)
            if lane is None:
                continue
            states[lane] += [worker.guard.status()["state"] for worker in workers.lanes]
            if isinstance(workers.lanes, Pool):
                pools[lane] = _moment_of(workers.spec, workers.lanes)
        return Moment(
            groups=await self._ledger.counts(),
            batch_groups=self._ledger.batch_groups,
            still_s=now - self._moved[1],
            workers=states,
            pools=pools,
        )


def _moment_of(spec: PoolSpec, pool: Pool[Any]) -> PoolMoment:
    seats = pool.seats
    return PoolMoment(
        held=sum(seat.num_held for seat in seats),
        room=sum(seat.lane.groups_at_once for seat in seats),
        least=spec.size,
        most=max(spec.size, spec.max_size),
    )
