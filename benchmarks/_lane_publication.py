"""Publication of new weights to an engine, attestation included, against one plain copy of the same bytes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._harness import Row
from benchmarks._rounds import Rounds, spread, timed
from solon.engines.base import EngineConfig
from solon.pipeline.publication import Publication, PublishConfig
from solon.pipeline.rollout import RolloutSettings
from solon.records import Sampling, Weights


def publication_rows(model: str, *, quick: bool, threads: int) -> list[Row]:
    """Learner actor, object store and engine actor of a run. A round: the policy moves, then export, transport, load,
    comparison of every tensor, canaries on both sides, attestation."""
    import ray

    from actors.learner import RemoteLearner
    from actors.rollout import RemoteRollout
    from cluster.launch import cluster
    from cluster.pools.base import worker_environment
    from learners.config import LearnConfig

    learn = LearnConfig.model_validate({"objective": "group_relative", "kl_coefficient": 0.0, "threads": threads})
    engine = EngineConfig(model=model, max_model_len=256, max_running=32, threads=threads, reloads=True)
    sampling = Sampling(max_tokens=32)
    settings = RolloutSettings(sampling=sampling, group_size=8, seed=0)
    named: dict[str, Any] = {"model": model, "sampling": sampling, "seed": 0, "engines_in_float32": True}
    with cluster(dashboard=False):
        learner_class, rollout_class = (
            ray.remote(concurrency_groups={"signs": 1, "writes": 1})(shell).options(runtime_env=environment, num_cpus=1)
            for shell, environment in zip(
                _shells(),
                (worker_environment(threads, on_gpu=False, trains=trains) for trains in (True, False)),
                strict=True,
            )
        )
        learner = RemoteLearner(lambda _: learner_class.remote(learn, name="learner", **named), name="learner")
        rollout = RemoteRollout(
            lambda _: rollout_class.remote(engine, settings, name="rollout-0"), name="rollout-0", groups_at_once=8
        )
        with asyncio.Runner() as loop:
            rows = _measure(loop, learner, rollout, rounds=2 if quick else 6)
        learner.end()
        rollout.end()
    return rows


def _shells() -> tuple[type, type]:
    """The actors of a run, with methods that move the policy, and that only copy bytes."""
    from actors.learner import LearnerShell
    from actors.rollout import RolloutShell

    class PublishingShell(LearnerShell):
        def again(self, version: int) -> Iterator[Any]:
            import torch

            with torch.no_grad():
                for parameter in self._learner.objective.parts()["policy"].module.parameters():
                    parameter.mul_(1.0001)
            self._learner.version = version
            began = time.perf_counter()
            manifest = yield from self._learner.publish()
            yield manifest, time.perf_counter() - began

        def payload(self) -> Any:
            if not hasattr(self, "_payload"):
                chunks = self._learner.initial_weights().chunks
                self._payload = np.concatenate([data for chunk in chunks for data in chunk])
            return self._payload

    class TakingShell(RolloutShell):
        def take(self, payload: Any) -> int:
            return len(payload.copy())

    return PublishingShell, TakingShell


def _measure(loop: asyncio.Runner, learner: Any, rollout: Any, *, rounds: int) -> list[Row]:
    from actors.chunks import StoredChunks

    manifest, payload_ref = loop.run(_both(learner, rollout))
    lane: Any = Member(rollout)
    publication = Publication([lane], settings=PublishConfig(), initial=manifest)
    loop.run(publication.verify(manifest, payload_ref))
    exports: list[float] = []
    pauses: list[float] = []

    async def publish() -> None:
        (manifest, seconds), references = await learner.ask_chunks("again", publication.attested + 1)
        receipts = await publication.publish(manifest, replace(manifest, chunks=StoredChunks(references)))
        assert receipts[0].check.compared
        exports.append(seconds)
        pauses.append(receipts[0].pause_s)

    async def transport() -> None:
        await rollout.ask("take", learner.actor.payload.remote())

    # The first ones pay for memory that later ones use again.
    loop.run(publish())
    loop.run(transport())
    exports.clear()
    pauses.clear()
    payload = np.ones(loop.run(learner.ask("payload")).size, np.uint8)
    copies = Rounds("copies/s", 1.0)
    sent = Rounds("transports/s", 1.0)
    copies.take(rounds, lambda _: timed(lambda: loop.run(publish())), lambda _: timed(lambda: payload.copy()))
    sent.take(rounds, lambda _: timed(lambda: loop.run(publish())), lambda _: timed(lambda: loop.run(transport())))
    print(f"publication: {copies.ours + sent.ours} s; copies {copies.reference} s; through the object store "
          f"{sent.reference} s; export {exports} s; the engine's pause {pauses} s", flush=True)  # fmt: skip
    rows = []
    for what, measured, goal in (
        ("one copy of the bytes in memory", copies, "<= 3"),
        ("the bytes through the object store, and a copy of them", sent, ""),
    ):
        times = [1 / ratio for ratio in measured.ratios]
        ours, reference = (statistics.median(seconds) for seconds in (measured.ours, measured.reference))
        rows += [
            Row(f"publication, float32, {len(payload) / 1e6:.0f} MB, attested, s (reference: {what})", ours, reference),
            Row(f"the same, median of {rounds} rounds' ratios ({spread(times)})", statistics.median(times), goal=goal),
        ]
    return [
        *rows,
        Row("of it export and the learner's canaries, s", statistics.median(exports)),
        Row("of it the engine's pause: load, comparison, canaries, s", statistics.median(pauses)),
    ]


async def _both(learner: Any, rollout: Any) -> tuple[Weights, Any]:
    (manifest, payload_ref), _ = await asyncio.gather(learner.start(), rollout.start())
    return manifest, payload_ref


class Member:
    """An engine that is never replaced."""

    incarnation = 0

    def __init__(self, remote: Any) -> None:
        self.name = remote.name
        self.load_weights = remote.load_weights

    def lost(self, error: Exception, incarnation: int) -> None:
        raise error

    async def ready(self) -> bool:
        return True
