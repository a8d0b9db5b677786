"""Rates and money: the limits hold for any callers at any time, and the spent amount survives a crash."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError, RunFailedError
from solon.feedback.spending.limiter import AsyncLimits, Limiter
from solon.feedback.spending.limits import MINUTE, Bill, Limits, LimitsConfig, Permit, Spend, Want, Window
from solon.feedback.spending.spend import NANO, SpendFile, nano


def usd(limits: Limits) -> tuple[float, float]:
    return limits.spent / NANO, limits.reserved / NANO


def drain(window: Window, amounts: Sequence[int]) -> list[float]:
    """When each amount passes for a caller that always asks at once, in virtual seconds."""
    now, times = 0.0, []
    for amount in amounts:
        for _ in range(10):
            if not (wait := window.wait(amount, now)):
                break
            now += wait
        window.take(amount, now)
        times.append(now)
    return times


def most_in_a_minute(times: Sequence[float], amounts: Sequence[int]) -> int:
    return max(
        sum(amount for at, amount in zip(times, amounts, strict=True) if start <= at < start + MINUTE)
        for start in times
    )


# -- rates -------------------------------------------------------------------------------------------------------


def test_a_tenth_of_a_minutes_quota_passes_at_once_and_the_rest_evenly():
    times = drain(Window(60), [1] * 12)
    assert times[:6] == [0.0] * 6
    assert times[6:] == pytest.approx([1, 2, 3, 4, 5, 6], abs=1e-3)


def test_the_whole_rate_is_used_and_never_more():
    times = drain(Window(60), [1] * 600)
    assert times[-1] == pytest.approx(600 - 60, abs=61)
    assert most_in_a_minute(times, [1] * 600) == 60


def test_an_amount_larger_than_the_bucket_passes_and_is_charged():
    times = drain(Window(100), [80, 1, 20])
    assert times[0] == 0.0
    # 70 below empty: 42 s to 0, and one more; the 20 have to wait until the 80 are a minute old.
    assert times[1] == pytest.approx(42.6, abs=0.01)
    assert times[2] == pytest.approx(60.0, abs=0.01)


def test_a_corrected_amount_makes_room():
    window = Window(100)
    taken = window.take(100, 0.0)
    assert window.wait(5, 1.0) == pytest.approx(59)
    window.correct(taken, 5)
    assert window.wait(5, 1.0) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.lists(st.tuples(st.integers(1, 200), st.floats(0, 30)), max_size=60))
def test_no_minute_ever_holds_more_than_the_limit(limit: int, schedule: list[tuple[int, float]]):
    window, now = Window(limit), 0.0
    times, amounts = [], []
    for amount, pause in schedule:
        amount, now = min(amount, limit), now + pause
        for _ in range(200):
            if not (wait := window.wait(amount, now)):
                break
            assert 0 < wait <= 2 * MINUTE
            now += wait
        else:
            pytest.fail("never let through")
        window.take(amount, now)
        times.append(now)
        amounts.append(amount)
    if times:
        assert most_in_a_minute(times, amounts) <= limit


# -- money -------------------------------------------------------------------------------------------------------


def test_money_is_reserved_then_settled():
    limits = Limits(LimitsConfig(max_usd=1.0))
    permits, _ = limits.take([Want(1, 0.4), Want(1, 0.4)], 0.0)
    assert usd(limits) == (0.0, 0.8)
    assert limits.take([Want(1, 0.4)], 0.0) == ([], 900.0)  # a bill may leave enough
    limits.settle([Bill(permits[0].number, usd=0.1)])
    assert usd(limits) == (0.1, 0.4)
    ((third,), wait) = limits.take([Want(1, 0.4)], 0.0)
    assert (third.refusal, wait) == ("", 0.0)
    limits.settle([Bill(permits[1].number, usd=0.4), Bill(third.number)])
    assert usd(limits) == (0.9, 0.0)  # an unknown price is the reserved one
    ((fourth,), _) = limits.take([Want(1, 0.2)], 0.0)
    assert "cap of 1 USD is reached: 0.9 USD are spent" in fourth.refusal
    ((fifth,), _) = limits.take([Want(1, 0.1)], 0.0)
    assert not fifth.refusal


def test_a_bill_counts_once():
    limits = Limits(LimitsConfig(max_usd=1.0))
    ((permit,), _) = limits.take([Want(1, 0.5)], 0.0)
    limits.settle([Bill(permit.number, usd=0.2), Bill(permit.number, usd=0.2), Bill(99, usd=0.2)])
    assert usd(limits) == (0.2, 0.0)


def test_money_reserved_by_a_vanished_caller_counts_as_spent_after_a_while():
    limits = Limits(LimitsConfig(max_usd=1.0, reservation_s=60))
    limits.take([Want(1, 0.7)], 0.0)
    assert limits.take([Want(1, 0.5)], 10.0) == ([], 50.0)
    ((permit,), _) = limits.take([Want(1, 0.5)], 60.0)
    assert "0.7 USD are spent" in permit.refusal
    assert limits.take([Want(1, 0.3)], 60.0)[0][0].refusal == ""


def test_a_budget_of_zero_refuses_free_requests_too():
    ((permit,), _) = Limits(LimitsConfig(max_usd=0)).take([Want(1, 0.0)], 0.0)
    assert permit.refusal == "the spend cap is 0 USD: nothing is asked"


def test_a_question_that_never_fits_is_refused_and_the_next_one_passes():
    permits, _ = Limits(LimitsConfig(tokens_per_minute=100)).take([Want(101), Want(100)], 0.0)
    assert [bool(p.refusal) for p in permits] == [True, False]
    assert "never fits tokens_per_minute = 100" in permits[0].refusal


def test_a_hold_stops_every_caller_for_the_requested_time():
    limits = Limits(LimitsConfig())
    limits.hold(5.0, 100.0)
    assert limits.take([Want(1)], 102.0) == ([], 3.0)
    assert limits.take([Want(1)], 105.0)[1] == 0.0


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.integers(0, 60), st.floats(0, 0.5)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.floats(0, 1)),
        st.tuples(st.just("advance"), st.just(0), st.floats(0, 40)),
    ),
    max_size=80,
)


@settings(max_examples=80, deadline=None)
@given(OPS, st.floats(0, 3), st.integers(1, 10), st.integers(60, 200))
def test_neither_cap_nor_rate_is_ever_exceeded(ops: list[Any], cap: float, per_minute: int, tokens: int):
    config = LimitsConfig(max_usd=cap, requests_per_minute=per_minute, tokens_per_minute=tokens, reservation_s=100)
    limits, now = Limits(config), 0.0
    queue: list[Want] = []
    granted: list[tuple[float, Want, Permit]] = []
    used: dict[int, int] = {}
    for kind, number, share in ops:
        if kind == "want":
            queue.append(Want(number, share))
        elif kind == "settle" and granted:
            _, want, permit = granted[number % len(granted)]
            actual = math.floor(share * want.tokens)
            limits.settle([Bill(permit.number, tokens=actual, usd=share * want.usd)])
            used.setdefault(permit.number, actual)
        elif kind == "advance":
            now += share
        permits, wait = limits.take(queue, now)
        assert (wait > 0) == (len(permits) < len(queue))
        granted += [(now, want, p) for want, p in zip(queue, permits, strict=False) if not p.refusal]
        queue = queue[len(permits) :]
        assert 0 <= limits.spent <= limits.committed <= nano(cap)
    if granted:
        times = [at for at, _, _ in granted]
        assert most_in_a_minute(times, [1] * len(granted)) <= per_minute
        assert most_in_a_minute(times, [used.get(p.number, want.tokens) for _, want, p in granted]) <= tokens


# -- waiting -----------------------------------------------------------------------------------------------------


def make_limiter(**changes: Any) -> Limiter:
    config = LimitsConfig(**changes)
    return Limiter(AsyncLimits(config), config)


async def test_callers_wait_for_a_bill_and_are_woken_by_it():
    limiter = make_limiter(max_usd=1.0)
    first = await limiter.acquire(Want(1, 0.9))
    waiting = asyncio.ensure_future(limiter.acquire(Want(1, 0.9)))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    limiter.settle(Bill(first.number, usd=0.1))
    assert (await asyncio.wait_for(waiting, 1)).refusal == ""


async def test_callers_are_served_in_order_of_arrival():
    limiter = make_limiter(requests_per_minute=6000)  # 600 at once, then one each 10 ms
    order: list[int] = []

    async def caller(n: int) -> None:
        await limiter.acquire(Want(1))
        order.append(n)

    await asyncio.gather(*(caller(n) for n in range(610)))
    assert order == list(range(610))


@pytest.mark.parametrize("turns", range(8))
async def test_a_caller_that_is_cancelled_at_any_moment_leaves_no_reservation(turns: int):
    config = LimitsConfig(max_usd=1.0)
    port = AsyncLimits(config)
    limiter = Limiter(port, config)
    held = await limiter.acquire(Want(1, 0.8))
    waiting = asyncio.ensure_future(limiter.acquire(Want(1, 0.5)))
    await asyncio.sleep(0.005)
    limiter.settle(Bill(held.number, usd=0.0))
    for _ in range(turns):  # the permit is on its way
        await asyncio.sleep(0)
    waiting.cancel()
    (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0.005)
    assert (await port.spend()).reserved == (0.5 if isinstance(outcome, Permit) else 0.0)


class CountingPort:
    """Grants everything, after a while; counts calls."""

    def __init__(self, fails: bool = False) -> None:
        self.calls = 0
        self.billed: list[Bill] = []
        self.fails = fails

    async def acquire(self, wants: Sequence[Want]) -> list[Permit]:
        self.calls += 1
        await asyncio.sleep(0.005)
        if self.fails:
            raise RunFailedError("the limiter died")
        return [Permit(n) for n, _ in enumerate(wants)]

    async def settle(self, bills: Sequence[Bill]) -> None:
        self.calls += 1
        await asyncio.sleep(0.005)
        self.billed += bills

    async def hold(self, seconds: float) -> None: ...

    async def spend(self) -> Spend:
        raise NotImplementedError

    async def close(self) -> Spend:
        raise NotImplementedError


async def test_requests_and_bills_of_a_process_are_sent_together():
    port = CountingPort()
    limiter = Limiter(port, LimitsConfig())
    permits = await asyncio.gather(*(limiter.acquire(Want(1)) for _ in range(100)))
    for permit in permits:
        limiter.settle(Bill(permit.number))
    await limiter.close()
    assert len(port.billed) == 100
    assert port.calls <= 4


async def test_a_permit_that_arrives_after_a_cancellation_is_returned():
    port = CountingPort()
    limiter = Limiter(port, LimitsConfig())
    asking = asyncio.ensure_future(limiter.acquire(Want(1, 0.5)))
    await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.sleep(0.02)
    assert port.billed == [Bill(0, tokens=0, usd=0.0)]


async def test_without_its_limits_no_caller_may_send_a_request():
    limiter = Limiter(CountingPort(fails=True), LimitsConfig())
    with pytest.raises(RunFailedError, match="died"):
        await asyncio.wait_for(asyncio.gather(*(limiter.acquire(Want(1)) for _ in range(3))), 1)
    with pytest.raises(RunFailedError, match="died"):
        await limiter.acquire(Want(1))


# -- the file ----------------------------------------------------------------------------------------------------


async def test_the_spent_amount_survives_a_clean_end_exactly(tmp_path: Path):
    config = LimitsConfig(max_usd=1.0, spend_file=str(tmp_path / "runs" / "spend.json"))
    for already in (0.0, 0.123456789):
        port = AsyncLimits(config)
        assert (await port.start()).spent == already
        (permit,) = await port.acquire([Want(1, 0.5)])
        await port.settle([Bill(permit.number, usd=0.123456789)])
        assert (await port.close()).spent == pytest.approx(already + 0.123456789)


async def test_after_a_crash_the_file_states_at_least_the_spent_amount(tmp_path: Path):
    file = tmp_path / "spend.json"
    config = LimitsConfig(max_usd=1.0, spend_file=str(file))
    port = AsyncLimits(config)
    (permit,) = await port.acquire([Want(1, 0.5)])
    # Before the permit is out, the money is on disk, with one hundredth of the cap ahead.
    assert json.loads(file.read_text())["spent_usd"] == pytest.approx(0.51)
    await port.settle([Bill(permit.number, usd=0.2)])
    await port.acquire([Want(1, 0.29)])
    assert json.loads(file.read_text())["spent_usd"] == pytest.approx(0.51)  # covered already: no write
    assert port._file
    assert port._file._lock
    port._file._lock.close()  # as the end of the process does
    again = AsyncLimits(config)
    assert (await again.start()).spent == pytest.approx(0.51)
    await again.close()


async def test_two_jobs_cannot_share_a_cap(tmp_path: Path):
    config = LimitsConfig(max_usd=1.0, spend_file=str(tmp_path / "spend.json"))
    first, second = AsyncLimits(config), AsyncLimits(config)
    await first.start()
    with pytest.raises(InputError, match="is in use by another job"):
        await second.start()
    await first.close()
    await second.start()
    await second.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": "solon.spend/v1", "spent_usd": -1}', '{"schema": "x", "spent_usd": 1}']
)
def test_an_unreadable_spend_file_is_never_treated_as_empty(tmp_path: Path, text: str):
    file = tmp_path / "spend.json"
    file.write_text(text)
    for _ in range(2):  # the lock is given back with the error
        with pytest.raises(InputError, match="was not written by Solon"):
            SpendFile(file, ahead=1)
    assert file.read_text() == text


def test_a_spend_file_that_cannot_be_created_is_an_input_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        SpendFile(tmp_path / "file" / "spend.json", ahead=1)


def test_money_is_counted_in_whole_billionths():
    assert nano(0.1) + nano(0.2) == nano(0.3)
    assert nano(1e-12) == 1
    assert nano(0.0) == 0
