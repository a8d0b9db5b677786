"""Lets callers wait for the limits of an endpoint: one queue per process, one set of limits per run.

Limiter (one per process) ──wants, bills──▶ LimitsPort (one per run: AsyncLimits, here or in an actor)
                          ◀──permits, or refusals──
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from solon.errors import RunFailedError
from solon.feedback.spending.limits import Bill, Limits, LimitsConfig, Permit, Spend, Want
from solon.feedback.spending.spend import NANO, SpendFile, nano

MOST_WANTS = 256
"""Most wants in one call."""


class LimitsPort(Protocol):
    """One set of limits, here or in another process."""

    async def acquire(self, wants: Sequence[Want]) -> list[Permit]:
        """Permits for the first wants, at least one; waits until there is one. First come, first served."""
        ...

    async def settle(self, bills: Sequence[Bill]) -> None:
        """Replace the reservations of finished calls by what the calls cost."""
        ...

    async def hold(self, seconds: float) -> None:
        """Grant no calls for `seconds`."""
        ...

    async def spend(self) -> Spend:
        """Money spent and reserved so far, USD."""
        ...

    async def close(self) -> Spend:
        """Write the spend file and release it; returns the final state."""
        ...


class AsyncLimits:
    """The limits behind an event loop, and their spend file. Plain asyncio; Ray hosts this class."""

    def __init__(self, config: LimitsConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._limits: Limits | None = None
        self._file: SpendFile | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def start(self) -> Spend:
        """Reads earlier spending. Raises InputError when the spend file cannot be used."""
        self._opened()
        return await self.spend()

    async def acquire(self, wants: Sequence[Want]) -> list[Permit]:
        """See `LimitsPort.acquire`."""
        limits = self._opened()
        async with self._turn:  # in order of arrival, so that small wants do not starve a large one
            while True:
                self._changed.clear()
                permits, wait = limits.take(wants, self._clock())
                if permits or not wants:
                    self._cover()
                    return permits
                try:
                    async with asyncio.timeout(wait if math.isfinite(wait) else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def settle(self, bills: Sequence[Bill]) -> None:
        """See `LimitsPort.settle`."""
        self._opened().settle(bills)
        self._cover()  # a call that cost more than it reserved
        self._changed.set()

    async def hold(self, seconds: float) -> None:
        """See `LimitsPort.hold`."""
        self._opened().hold(seconds, self._clock())

    async def spend(self) -> Spend:
        """See `LimitsPort.spend`."""
        limits = self._opened()
        return Spend(
            spent=limits.spent / NANO,
            reserved=limits.reserved / NANO,
            cap=self._config.max_usd,
            calls=limits.calls,
            refused=limits.refused,
        )

    async def close(self) -> Spend:
        """Write the total; open reservations count as spent."""
        if self._file is not None:
            self._file.close(self._opened().committed)
            self._file = None
        return await self.spend()

    def _opened(self) -> Limits:
        if self._limits is None:
            if self._config.spend_file:
                cap = self._config.max_usd
                self._file = SpendFile(self._config.spend_file, ahead=nano(0.01 if cap is None else cap / 100))
            self._limits = Limits(self._config, spent=self._file.spent if self._file else 0)
        return self._limits

    def _cover(self) -> None:
        if self._file is not None and self._limits is not None:
            self._file.cover(self._limits.committed, cap=self._limits.cap)


class Limiter:
    """Shared by the callers of one process: `permit = await limiter.acquire(want)`, then `limiter.settle(bill)`.

    Wants and bills that arrive during a call to the port are sent together in the next one: if the port is in another
    process, a call costs milliseconds whatever it carries.
    """

    def __init__(self, port: LimitsPort, config: LimitsConfig) -> None:
        self.config = config
        self._port = port
        self._wants: deque[tuple[Want, asyncio.Future[Permit]]] = deque()
        self._bills: list[Bill] = []
        self._asking: asyncio.Task[None] | None = None
        self._billing: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def acquire(self, want: Want) -> Permit:
        """Waits for a permit. Raises the port's error: without a permit, no call may be made."""
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self._wants.append((want, future))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())
            raise

    def settle(self, bill: Bill) -> None:
        """Queue a bill for delivery."""
        self._bills.append(bill)
        if self._billing is None or self._billing.done():
            self._billing = asyncio.ensure_future(self._bill())

    async def hold(self, seconds: float) -> None:
        """Grant no permit for `seconds`."""
        await self._port.hold(seconds)

    async def close(self) -> None:
        """Delivers the last bills; callers that still wait for a permit get an error. The port stays open."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait([self._asking])
        self._fail(RunFailedError("the limiter was closed while calls waited for it"))
        while self._billing is not None and not self._billing.done():
            await asyncio.wait([self._billing])

    async def _ask(self) -> None:
        while self._wants:
            while self._wants and self._wants[0][1].done():  # cancelled
                self._wants.popleft()
            batch = [self._wants[n] for n in range(min(len(self._wants), MOST_WANTS))]
            if not batch:
                return
            try:
                permits = await self._port.acquire([want for want, _ in batch])
            except Exception as error:
                self._fail(error)
                return
            assert 1 <= len(permits) <= len(batch), f"{len(permits)} permits for {len(batch)} wants"
            for permit in permits:
                _, future = self._wants.popleft()
                if future.done():
                    self._release(permit)
                else:
                    future.set_result(permit)

    async def _bill(self) -> None:
        while self._bills:
            bills, self._bills = self._bills, []
            try:
                await self._port.settle(bills)
            except Exception as error:
                self._failure = error
                return

    def _release(self, permit: Permit) -> None:
        """Settle an unused permit at zero cost."""
        if not permit.refusal:
            self.settle(Bill(permit.number, tokens=0, usd=0.0))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        while self._wants:
            _, future = self._wants.popleft()
            if not future.done():
                future.set_exception(error)
