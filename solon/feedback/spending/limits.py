"""Limits shared by all callers of an endpoint: requests and tokens per minute, and a cap on spending.

Only arithmetic, without a clock; `solon.feedback.spending.limiter` lets callers wait.

Money is reserved before a call and settled after it, so concurrent callers cannot exceed the cap together. A want that
the cap can no longer cover is refused immediately. A refusal is not a failure: the question can be asked again under a
larger cap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from solon.feedback.spending.spend import NANO, nano

MINUTE = 60.0
BURST = 0.1
"""Share of a minute's limit that may be taken at once."""
LONGEST_HOLD_S = 300.0
SHORTEST_WAIT_S = 1e-4


class LimitsConfig(BaseModel):
    """`LimitsConfig(requests_per_minute=600, max_usd=5.0)`; an omitted limit does not apply."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_minute: int | None = Field(None, ge=1)
    """Calls in any minute, retries included."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Prompt and answer tokens in any minute, as estimated before a call and corrected after it."""
    max_usd: float | None = Field(None, ge=0, le=1e6)
    """Cap on spending over all starts of a job; 0 asks nothing."""
    spend_file: str = ""
    """File for the money spent, kept between starts; empty: each start counts from zero."""
    reservation_s: float = Field(900.0, gt=0)
    """Seconds after which an unsettled reservation counts as spent."""


@dataclass(frozen=True, slots=True)
class Want:
    """One call that a judge wants to make. `Want(tokens=420, usd=0.002)`: upper bounds."""

    tokens: int
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Permit:
    """The answer to a want: permission for one call, or the reason for refusal."""

    number: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Bill:
    """Actual cost of a call with a permit. None: unknown, the reservation counts."""

    number: int
    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Money spent and reserved, USD."""

    spent: float
    reserved: float
    cap: float | None
    calls: int
    refused: int


@dataclass(slots=True)
class Taken:
    """An amount that counts in the minute after `at`."""

    at: float
    amount: int
    is_counted: bool = True


class Window:
    """At most `limit` in any minute, spread evenly.

    Two conditions. The amounts taken in the last minute and the new one fit into the limit. And a token bucket, which
    holds a tenth of a minute's limit and refills at the limit, keeps the flow steady: without it a whole minute's limit
    would be taken at once. The bucket alone cannot guarantee the first, since a full bucket and its refill exceed the
    limit. An amount larger than the bucket passes when it is full, and leaves a debt.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: deque[Taken] = deque()
        self._total = 0
        self._capacity = max(1.0, limit * BURST)
        self._level = self._capacity
        self._level_at = -math.inf

    def wait(self, amount: int, now: float) -> float:
        """Seconds until the amount may be taken; 0: now. The amount is not above the limit."""
        self._advance(now)
        wait = max(0.0, (min(amount, self._capacity) - self._level) * MINUTE / self.limit)
        excess = self._total + amount - self.limit
        for taken in self._taken:
            if excess <= 0:
                break
            excess -= taken.amount
            wait = max(wait, taken.at + MINUTE - now)
        return max(wait, SHORTEST_WAIT_S) if wait > 0 else 0.0

    def take(self, amount: int, now: float) -> Taken:
        """Take the amount."""
        self._advance(now)
        taken = Taken(now, amount)
        self._taken.append(taken)
        self._total += amount
        self._level -= amount
        return taken

    def correct(self, taken: Taken, amount: int) -> None:
        """Replace the amount by the actual one."""
        change = amount - taken.amount
        taken.amount = amount
        self._level = min(self._capacity, self._level - change)
        if taken.is_counted:
            self._total += change

    def _advance(self, now: float) -> None:
        while self._taken and self._taken[0].at + MINUTE <= now:
            gone = self._taken.popleft()
            gone.is_counted = False
            self._total -= gone.amount
        if math.isfinite(self._level_at):
            refill = max(0.0, now - self._level_at) * self.limit / MINUTE
            self._level = min(self._capacity, self._level + refill)
        self._level_at = max(now, self._level_at)


@dataclass(slots=True)
class _Open:
    """A permit that is not settled yet."""

    usd: int
    """Reserved, nano-dollars."""
    due: float
    tokens: Taken | None = field(repr=False)


class Limits:
    """Grants and books; every method gets the time. Not thread-safe."""

    def __init__(self, config: LimitsConfig, *, spent: int = 0) -> None:
        """`spent`: nano-dollars spent by earlier starts."""
        self._config = config
        self._requests = Window(config.requests_per_minute) if config.requests_per_minute else None
        self._tokens = Window(config.tokens_per_minute) if config.tokens_per_minute else None
        self.cap = None if config.max_usd is None else nano(config.max_usd)
        self.spent = spent
        self.reserved = 0
        self._open: dict[int, _Open] = {}
        self._held_until = -math.inf
        self.calls = 0
        self.refused = 0

    @property
    def committed(self) -> int:
        """Nano-dollars spent or reserved; never above the cap while no call costs more than it reserved."""
        return self.spent + self.reserved

    def take(self, wants: Sequence[Want], now: float) -> tuple[list[Permit], float]:
        """Permits for as many of the first wants as can be decided now, and seconds until the next one.

        Infinity: only a bill can free enough.
        """
        self._expire(now)
        permits: list[Permit] = []
        for want in wants:
            cost = nano(want.usd)
            if refusal := self._refusal(want, cost):
                self.refused += 1
                permits.append(Permit(-1, refusal))
                continue
            if wait := self._wait(want, cost, now):
                return permits, wait
            permits.append(self._grant(want, cost, now))
        return permits, 0.0

    def settle(self, bills: Sequence[Bill]) -> None:
        """Book the cost of calls. A duplicate or late bill changes nothing."""
        for bill in bills:
            opened = self._open.pop(bill.number, None)
            if opened is None:
                continue
            self.reserved -= opened.usd
            self.spent += opened.usd if bill.usd is None else nano(bill.usd)
            if self._tokens is not None and opened.tokens is not None and bill.tokens is not None:
                self._tokens.correct(opened.tokens, bill.tokens)

    def hold(self, seconds: float, now: float) -> None:
        """Grant no calls for `seconds`: the endpoint asked for a pause."""
        self._held_until = max(self._held_until, now + min(seconds, LONGEST_HOLD_S))

    def _refusal(self, want: Want, cost: int) -> str:
        if self.cap == 0:
            return "the spend cap is 0 USD: nothing is asked"
        if self.cap is not None and self.spent + cost > self.cap:
            return (
                f"the spend cap of {self.cap / NANO:g} USD is reached: {self.spent / NANO:.6g} USD are spent, and the "
                f"next question may cost {cost / NANO:.2g}; start again with a larger cap to continue"
            )
        if self._tokens is not None and want.tokens > self._tokens.limit:
            return f"a question of about {want.tokens} tokens never fits tokens_per_minute = {self._tokens.limit}"
        return ""

    def _wait(self, want: Want, cost: int, now: float) -> float:
        if self.cap is not None and self.committed + cost > self.cap:
            # Reservations are upper bounds; their bills may free enough.
            return max(min((o.due for o in self._open.values()), default=math.inf) - now, SHORTEST_WAIT_S)
        return max(
            self._held_until - now if self._held_until > now else 0.0,
            self._requests.wait(1, now) if self._requests else 0.0,
            self._tokens.wait(want.tokens, now) if self._tokens else 0.0,
        )

    def _grant(self, want: Want, cost: int, now: float) -> Permit:
        if self._requests is not None:
            self._requests.take(1, now)
        tokens = self._tokens.take(want.tokens, now) if self._tokens is not None else None
        number = self.calls
        self.calls += 1
        self.reserved += cost
        self._open[number] = _Open(cost, now + self._config.reservation_s, tokens)
        return Permit(number)

    def _expire(self, now: float) -> None:
        while self._open:
            number, oldest = next(iter(self._open.items()))
            if oldest.due > now:
                return
            self.settle([Bill(number)])
