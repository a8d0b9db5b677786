"""Several engines take a version at the same time."""

from __future__ import annotations

import asyncio

import pytest

from solon.clock import Clock
from solon.errors import AttestationError
from solon.pipeline.publication import Publication, PublishConfig
from solon.records import LoadReceipt, Weights
from tests.unit.fakes import FakeRollout, make_weights
from tests.unit.virtual_time import run_virtual


class Slow(FakeRollout):
    """Takes a version in 10 s."""

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        await asyncio.sleep(10)
        return await super().load_weights(weights)


@pytest.mark.parametrize(("at_once", "seconds"), [(1, 70), (3, 30), (7, 10), (99, 10)])
def test_publication_takes_as_long_as_its_waves(at_once: int, seconds: float):
    engines = [Slow(name=f"rollout-{number}") for number in range(7)]

    async def main(clock: Clock) -> int:
        settings = PublishConfig(logprob_tolerance=1e-3, engines_at_once=at_once)
        publication = Publication(engines, settings=settings, initial=make_weights(0), clock=clock)
        return len(await publication.publish(make_weights(1), make_weights(1)))

    receipts, took_s, left = run_virtual(main)
    assert (receipts, took_s, left) == (7, seconds, set())
    assert {engine.engine_version for engine in engines} == {1}


@pytest.mark.parametrize("bad", range(3))
def test_an_engine_without_the_version_ends_the_publication_with_its_name(bad: int):
    engines = [Slow(name=f"rollout-{n}", loads_silently_fail=n == bad) for n in range(3)]

    async def main(clock: Clock) -> None:
        settings = PublishConfig(logprob_tolerance=1e-3, engines_at_once=3)
        publication = Publication(engines, settings=settings, initial=make_weights(0), clock=clock)
        with pytest.raises(AttestationError, match=f"rollout-{bad}"):
            await publication.publish(make_weights(1), make_weights(1))

    _, _, left = run_virtual(main)
    assert left == set()
