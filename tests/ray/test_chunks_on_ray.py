"""Weights in chunks through the object store: one copy on a node, which outlives the learner's process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from actors.calls import RemoteWorker
from actors.chunks import StoredChunks
from actors.learner import RemoteLearner
from solon.engines.chunks import cut, tensors_of
from solon.engines.digest_tree import by_chunk, root_of
from solon.engines.fake import FakeEngine
from solon.engines.runner import EngineRunner
from solon.errors import AttestationError, PayloadLostError
from solon.records import LoadReceipt, Weights

pytestmark = pytest.mark.ray

MIB = 1 << 20
CHUNKS, CHUNK = 4, 2 * MIB
"""Larger than what Ray sends by value."""


class Publishing:
    """A learner of weights that say which version they are."""

    def start(self, checkpoint: str) -> Iterator[Any]:
        yield from self._publish(0)

    def pid(self) -> int:
        return os.getpid()

    def _publish(self, version: int) -> Iterator[Any]:
        import torch

        named = ((f"layer.{n}.w.weight", torch.full((CHUNK,), version, dtype=torch.uint8)) for n in range(CHUNKS))
        leaves = yield from cut(named, bound=CHUNK)
        yield Weights(
            version=version,
            chunks=(),
            leaves=leaves,
            fingerprint=root_of(leaves),
            canary_token_ids=(),
            canary_logprobs=(),
        )


class Taking:
    """An engine."""

    def __init__(self) -> None:
        self._runner = EngineRunner(FakeEngine, name="fake")

    async def load(self, weights: Weights) -> LoadReceipt:
        assert isinstance(weights.chunks, StoredChunks)
        await asyncio.to_thread(weights.chunks.fetch)
        return await self._runner.load_weights(weights)

    async def look(self, weights: Weights) -> tuple[list[bool], int]:
        """Whether each chunk is a view of memory that no one may write, and the last byte."""
        views, last = [], 0
        for number, leaves in enumerate(by_chunk(weights)):
            ((_, tensor),) = tensors_of(leaves, weights.chunks[number])
            (data,) = weights.chunks[number]
            views.append(not data.flags.writeable and not data.flags.owndata)
            last = int(tensor[-1])
        return views, last


class Keeper:
    """Owns what it puts, unlike a task that returns it."""

    def put(self, chunk: Any) -> list[ray.ObjectRef]:
        return [ray.put(chunk)]


def learner() -> RemoteLearner:
    kind = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Publishing)
    return RemoteLearner(lambda _: kind.remote(), name="learner")


def engine(number: int) -> RemoteWorker:
    kind = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Taking)
    return RemoteWorker(lambda _: kind.remote(), name=f"rollout-{number}")


async def gone(chunks: StoredChunks) -> None:
    """Returns when the only chunk is lost: Ray notices the death of its owner after a while."""
    for _ in range(100):
        try:
            await asyncio.to_thread(lambda: chunks[0] and None)
        except PayloadLostError:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the chunk outlived its owner")


async def stored_bytes(expected: Callable[[float], bool]) -> float:
    """Bytes in the object store, once they are as expected or five seconds have passed."""
    for _ in range(50):
        found = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
        if expected(found):
            break
        await asyncio.sleep(0.1)
    return found


async def test_two_engines_on_a_node_read_one_copy_and_the_version_before_is_freed(ray_cluster):
    source, engines = learner(), [engine(0), engine(1)]
    before = await stored_bytes(lambda found: found == 0)
    held: Sequence[Weights] = ()
    size = CHUNKS * CHUNK
    for _ in range(3):
        manifest, weights = await source.start()
        assert (len(manifest.chunks), len(weights.chunks), len(weights.leaves)) == (0, CHUNKS, CHUNKS)
        receipts = [await one.ask("load", weights) for one in engines]
        assert {receipt.fingerprint for receipt in receipts} == {manifest.fingerprint}
        for one in engines:
            views, last = await one.ask("look", weights)
            assert views == [True] * CHUNKS
            assert last == 0
        held = [weights]
        used = await stored_bytes(lambda found: found - before < 1.5 * size)
        assert size <= used - before < 1.2 * size
    assert held
    for worker in (source, *engines):
        worker.end()


async def test_weights_outlive_the_process_of_the_learner(ray_cluster):
    source, one = learner(), engine(0)
    _, weights = await source.start()
    os.kill(await source.ask("pid"), signal.SIGKILL)
    await asyncio.sleep(1)
    assert (await one.ask("load", weights)).version == 0
    source.replace()
    manifest, again = await source.start()
    assert (weights.incarnation, manifest.incarnation, again.incarnation) == (0, 1, 1)
    assert again.fingerprint == weights.fingerprint
    source.end()
    one.end()


async def test_lost_and_damaged_chunks_are_refused_and_the_engine_still_takes_a_whole_version(ray_cluster):
    source, one = learner(), engine(0)
    _, weights = await source.start()
    chunks = list(weights.chunks)
    references = [ray.put(chunk) for chunk in chunks]
    (data,) = chunks[2]
    damaged = data.copy()
    damaged[-1] ^= 1
    references[2] = ray.put((damaged,))
    with pytest.raises(AttestationError, match=r"chunk 2 .*\(layer\.2\.w\.weight\)"):
        await one.ask("load", replace(weights, chunks=StoredChunks(references)))
    one.replace()
    keeper = ray.remote(num_cpus=0)(Keeper).remote()
    whole = [ray.put(chunk) for chunk in chunks]
    whole[1] = (await keeper.put.remote(chunks[1]))[0]
    ray.kill(keeper)
    await gone(StoredChunks(whole[1:2]))
    with pytest.raises(PayloadLostError):
        await one.ask("load", replace(weights, chunks=StoredChunks(whole)))
    assert (await one.ask("load", weights)).version == 0
    assert np.array_equal(chunks[0][0], weights.chunks[0][0])
    source.end()
    one.end()
