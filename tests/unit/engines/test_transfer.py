"""An engine takes a version chunk by chunk, or refuses all work after a part of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solon.engines.base import Request
from solon.engines.fake import FakeEngine, fake_weights
from solon.engines.runner import EngineRunner, load_and_report
from solon.errors import AttestationError, EngineFailedError, PayloadLostError
from solon.records import Chunk, WeightCheck, Weights

REQUEST = Request(request_id="r", prompt_token_ids=(4, 5), max_tokens=4)


class Chunks(Sequence[Chunk]):
    """Counts the chunks in use, and fails at a given opening."""

    def __init__(self, chunks: Sequence[Chunk], failure: tuple[int, Exception] | None = None) -> None:
        self._chunks, self._failure = chunks, failure
        self.openings = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: Any) -> Any:
        if self._failure is not None and self.openings == self._failure[0]:
            raise self._failure[1]
        self.openings += 1
        return self._chunks[number]


def broken(at: int, error: Exception, version: int = 1) -> Weights:
    """Weights of three chunks, of which the opening number `at` fails: 0 to 2 verify, 3 to 5 load."""
    weights = fake_weights(version, payload=b"nine bytes, or more", chunks=3)
    return replace(weights, chunks=Chunks(weights.chunks, (at, error)))


def whole(version: int) -> Weights:
    return fake_weights(version, chunks=3)


def test_a_version_in_chunks_is_the_version_at_once():
    engines = [FakeEngine(), FakeEngine()]
    engines[0].load_weights(fake_weights(1))
    engines[1].load_weights(whole(1))
    assert engines[0].checksum() == engines[1].checksum()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_version_lost_while_it_is_verified_leaves_the_engine_as_it_was(at: int):
    engine = FakeEngine()
    before = engine.checksum()
    with pytest.raises(PayloadLostError):
        engine.load_weights(broken(at, PayloadLostError("gone")))
    assert (engine.version, engine.checksum()) == (0, before)
    engine.load_weights(whole(1))
    engine.add(REQUEST)
    engine.step()


@pytest.mark.parametrize("at", [4, 5])
@pytest.mark.parametrize("error", [PayloadLostError("gone"), OSError("broken pipe"), AttestationError("no value")])
def test_an_engine_with_a_part_of_a_version_never_generates(at: int, error: Exception):
    engine = FakeEngine()
    engine.add(REQUEST)
    before = engine.checksum()
    with pytest.raises((type(error), EngineFailedError)):
        engine.load_weights(broken(at, error))
    assert engine.checksum() != before
    refused: list[Callable[[], Any]] = [engine.step, lambda: engine.add(REQUEST), lambda: engine.load_weights(whole(2))]
    for work in refused:
        with pytest.raises(EngineFailedError, match=r"loading weights 1 failed half-way: .*start a new one"):
            work()


async def test_a_poisoned_engine_ends_its_runner_so_that_its_process_is_replaced():
    runner = EngineRunner(FakeEngine, name="fake")
    generating = asyncio.ensure_future(runner.generate([replace(REQUEST, max_tokens=10_000 // 50)]))
    with pytest.raises(EngineFailedError, match="half-way"):
        await runner.load_weights(broken(4, PayloadLostError("gone")))
    with pytest.raises(EngineFailedError):
        await generating
    assert not runner.alive
    with pytest.raises(EngineFailedError):
        await runner.generate([REQUEST])


async def test_a_runner_survives_a_version_that_was_lost_before_it_changed_anything():
    runner = EngineRunner(FakeEngine, name="fake")
    with pytest.raises(PayloadLostError):
        await runner.load_weights(broken(1, PayloadLostError("gone")))
    assert (await runner.load_weights(whole(1))).version == 1
    assert await runner.generate([REQUEST])
    await runner.close()


def test_damaged_chunks_are_refused_before_the_engine_changes():
    engine, weights = FakeEngine(), whole(1)
    before = engine.checksum()
    chunks = [weights.chunks[0], (np.zeros_like(weights.chunks[1][0]),), weights.chunks[2]]
    with pytest.raises(AttestationError, match=r"chunk 1 .*\(part-1\)"):
        engine.load_weights(replace(weights, chunks=chunks))
    assert engine.checksum() == before
    engine.add(REQUEST)
    engine.step()


class Comparing(FakeEngine):
    """Compares its tensors, as real engines do."""

    sums = 0

    def check_weights(self, weights: Weights) -> WeightCheck:
        return replace(super().check_weights(weights), compared=3)

    def checksum(self) -> str:
        self.sums += 1
        return super().checksum()


def test_live_weights_are_summed_up_only_where_no_tensor_was_compared():
    comparing, plain = Comparing(), FakeEngine()
    assert load_and_report(comparing, fake_weights(1)).checksum == ""
    assert comparing.sums == 0
    assert load_and_report(plain, fake_weights(1)).checksum == plain.checksum()
