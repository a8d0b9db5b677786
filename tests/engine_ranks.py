"""An engine of several processes without Ray: this process leads, and starts the others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from solon.engines.base import Engine, EngineConfig
from solon.engines.build import build_rank
from solon.engines.ranks.following import Follower
from solon.engines.ranks.leading import LeadingEngine
from solon.engines.ranks.meeting import Meeting
from solon.records import Weights

DEVICES = "SOLON_TEST_DEVICES"
"""The GPUs for tests, in a process that sees only the first of them."""


def follow(config: EngineConfig, name: str, rank: int, meeting: Meeting, weights: Sequence[Weights]) -> None:
    """The main function of another rank, which has these versions and, on GPUs, the device of its number."""
    if config.device == "gpu":
        given = os.environ.get(DEVICES, "")
        os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[rank] if given else str(rank)
    follower = Follower(config, name=name, rank=rank, build=build_rank)
    for one in weights:
        follower.give(one)
    follower.run(meeting)


@contextmanager
def engine_of_ranks(
    config: EngineConfig, *, name: str = "policy-0", weights: Sequence[Any] = ()
) -> Iterator[tuple[Engine, list[Any]]]:
    """The engine, and the processes of its other ranks. weights: for each of those ranks, the versions that it gets."""
    context = multiprocessing.get_context("spawn")
    others: list[Any] = []

    def opened(meeting: Meeting) -> None:
        for rank in range(1, config.tensor_parallel):
            given = weights[rank - 1] if weights else ()
            others.append(context.Process(target=follow, args=(config, name, rank, meeting, given)))
            others[-1].start()

    engine = LeadingEngine(config, name=name, opened=opened, build=build_rank)
    try:
        yield engine, others
    finally:
        engine.close()
        for other in others:
            other.join(30)
            if other.is_alive():
                other.kill()
