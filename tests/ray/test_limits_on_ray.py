"""One limiter for a whole cluster: concurrent processes keep to one cap and one rate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.limits import LimitsActor, RemoteLimits
from solon.errors import InputError, RunFailedError
from solon.feedback.spending.limiter import Limiter
from solon.feedback.spending.limits import Bill, LimitsConfig, Want

pytestmark = pytest.mark.ray

CENT = Want(10, 0.01)


@ray.remote(num_cpus=0)
class Caller:
    """A process with questions: each reserves a cent and costs half of it."""

    async def ask(self, limits: Any, config: LimitsConfig, questions: int) -> tuple[int, int]:
        limiter = Limiter(RemoteLimits(limits), config)

        async def one() -> bool:
            permit = await limiter.acquire(CENT)
            if not permit.refusal:
                limiter.settle(Bill(permit.number, tokens=5, usd=0.005))
            return not permit.refusal

        outcomes = await asyncio.gather(*(one() for _ in range(questions)))
        await limiter.close()
        return sum(outcomes), len(outcomes) - sum(outcomes)


async def test_concurrent_processes_do_not_exceed_one_cap(ray_cluster, tmp_path: Path):
    config = LimitsConfig(max_usd=1.0, spend_file=str(tmp_path / "spend.json"))
    actor = LimitsActor.remote(config)
    port = RemoteLimits(actor)
    assert (await port.start()).spent == 0.0
    callers = [Caller.remote() for _ in range(2)]
    counts = await asyncio.gather(*(caller.ask.remote(actor, config, 150) for caller in callers))
    asked, refused = (sum(column) for column in zip(*counts, strict=True))
    # The last one asked was allowed with 0.990 spent at most: 199 questions of half a cent.
    assert (asked, refused) == (199, 101)
    spend = await port.close()
    assert (spend.spent, spend.reserved, spend.calls) == (pytest.approx(0.995), 0.0, 199)
    ray.kill(actor)

    again = RemoteLimits(LimitsActor.remote(config))
    assert (await again.start()).spent == pytest.approx(0.995)
    (permit,) = await again.acquire([CENT])
    assert "is reached" in permit.refusal


class CountingLimits(RemoteLimits):
    calls = 0

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        return await super()._call(method, *arguments)


async def test_concurrent_requests_are_sent_together(ray_cluster):
    config = LimitsConfig(max_usd=100.0)
    port = CountingLimits(LimitsActor.remote(config))
    limiter = Limiter(port, config)
    permits = await asyncio.gather(*(limiter.acquire(CENT) for _ in range(2000)))
    assert not any(permit.refusal for permit in permits)
    assert port.calls == 8  # 256 each


async def test_an_unusable_spend_file_keeps_its_error(ray_cluster, tmp_path: Path):
    (tmp_path / "spend.json").write_text("{")
    config = LimitsConfig(max_usd=1.0, spend_file=str(tmp_path / "spend.json"))
    with pytest.raises(InputError, match="was not written by Solon"):
        await RemoteLimits(LimitsActor.remote(config)).start()


async def test_no_request_is_made_when_the_limiter_has_died(ray_cluster):
    config = LimitsConfig()
    actor = LimitsActor.remote(config)
    limiter = Limiter(RemoteLimits(actor), config)
    await limiter.acquire(CENT)
    ray.kill(actor)
    with pytest.raises(RunFailedError, match="the limiter died"):
        await asyncio.wait_for(limiter.acquire(CENT), timeout=30)
