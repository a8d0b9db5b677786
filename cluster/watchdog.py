"""Watches a run from within its process: publishes its state, and detects that nothing moves or that the machine is
about to be taken away."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from solon.clock import Clock
from solon.doctor.status import RunStatus, is_stuck, who_waits
from solon.errors import RunFailedError
from solon.ledger.async_ledger import AsyncLedger
from solon.recovery.guard import Guard, RecoveryConfig
from solon.telemetry.recorder import Recorder

LOOK_EVERY_S = 5.0
STALLS_BEFORE_END = 3
"""A run is ended when it has not moved for this multiple of `recovery.stall_s` and no worker holds a group."""


class Watchdog:
    """`async with Watchdog(...)` runs beside the loop. It writes the run's state to `live.json` every few seconds."""

    def __init__(
        self,
        config: RecoveryConfig,
        *,
        ledger: AsyncLedger,
        guards: Callable[[], Sequence[Guard]],
        recorder: Recorder,
        on_stop: Callable[[str], None],
        draining: Callable[[], str | None],
        clock: Clock | None = None,
    ) -> None:
        """guards: of the present workers. on_stop: ends the run after the current step, with a reason. draining: why
        this machine is about to be removed, or None; may block. clock: measures how long nothing moved."""
        self._config = config
        self._ledger = ledger
        self._guards = guards
        self._recorder = recorder
        self._on_stop = on_stop
        self._draining = draining
        self._clock = clock or Clock()
        self._away = (0, 0.0)
        self._moved = (-1, 0.0)
        self._stalls = 0
        self._task: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[Any] | None = None
        self.failure: RunFailedError | None = None

    async def __aenter__(self) -> Watchdog:
        self._owner = asyncio.current_task()
        self._moved = (self._ledger.progress, self._clock.now())
        self._away = (self._clock.absences, self._clock.away_s)
        self._task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self.failure is not None:
            assert self._owner is not None
            self._owner.uncancel()
            raise self.failure from None

    async def _watch(self) -> None:
        stopping = False
        while True:
            standing = await self._look()
            self._recorder.write("live.json", standing.model_dump(mode="json"))
            if not stopping and (reason := await asyncio.to_thread(self._draining)):
                stopping = True
                self._recorder.event("draining", reason=reason)
                self._on_stop(reason)
            await asyncio.sleep(min(LOOK_EVERY_S, self._config.stall_s / 2))

    async def _look(self) -> RunStatus:
        now = self._clock.now()
        self._tell_away()
        if self._ledger.progress != self._moved[0]:
            self._moved, self._stalls = (self._ledger.progress, now), 0
        still_s = now - self._moved[1]
        standing = RunStatus(
            time=self._clock.wall(),
            pid=os.getpid(),
            host=socket.gethostname(),
            still_s=round(still_s, 3),
            groups=await self._ledger.counts(),
            out=tuple(self._ledger.out()),
            workers=tuple(guard.status() for guard in self._guards()),
            batch_groups=self._ledger.batch_groups,
        )
        if still_s > self._config.stall_s * (self._stalls + 1):
            self._stalls += 1
            self._stalled(standing)
        return standing

    def _tell_away(self) -> None:
        """Record that this process was stopped for a while: it explains the lost time."""
        absences, away_s = self._clock.absences, self._clock.away_s
        if absences > self._away[0]:
            self._recorder.event("driver_was_away", seconds=round(away_s - self._away[1], 1))
            self._away = absences, away_s

    def _stalled(self, standing: RunStatus) -> None:
        waits = who_waits(standing)
        self._recorder.event("stalled", still_s=standing.still_s, waits=waits, tasks=waiting_tasks())
        if self._stalls >= STALLS_BEFORE_END and self._owner is not None and is_stuck(standing):
            self.failure = RunFailedError(
                f"nothing has moved for {standing.still_s:.0f} s: {'; '.join(waits)}; start the same command with "
                "--resume to continue at the last checkpoint"
            )
            self._owner.cancel()


def waiting_tasks() -> list[str]:
    """Where every task of this process waits, innermost line first, for debugging."""
    lines = []
    for task in asyncio.all_tasks():
        frames = task.get_stack(limit=4)
        where = " < ".join(f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in reversed(frames))
        lines.append(f"{task.get_name()}: {where}")
    return sorted(lines)


def draining_here() -> str | None:
    """Why the node of this process is about to be removed (spot notice, scale-down, `ray drain-node`), or None."""
    with suppress(Exception):  # failing to ask is no reason to end a run
        # Ray's own training loop asks the same way; there is no public name for it.
        deadline_ms = ray._private.state.state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
        if deadline_ms is not None:
            left = f" in {max(0.0, deadline_ms / 1000 - time.time()):.0f} s" if deadline_ms else ""
            return f"the driver's node is drained{left}"
    return None
