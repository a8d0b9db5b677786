"""Publication of new weights to an engine, attestation included, against one plain copy of the same bytes."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

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

    from actors.learner import LearnerShell, RemoteLearner, manifest_of
    from actors.rollout import RemoteRollout, RolloutActor
    from cluster.launch import cluster
    from cluster.pools.base import worker_environment
    from learners.config import LearnConfig

    class PublishingShell(LearnerShell):
        """The learner's actor, moved by something cheaper than a step."""

        def again(self, version: int) -> tuple[Weights, float, Weights]:
            import torch

            with torch.no_grad():
                for parameter in self._learner.objective.parts()["policy"].module.parameters():
                    parameter.mul_(1.0001)
            self._learner.version = version
            found: list[Weights] = []
            seconds = timed(lambda: found.append(self._learner.initial_weights()))
            return manifest_of(found[0]), seconds, found[0]

        def copy(self) -> float:
            """Seconds for one plain copy of the bytes of a version into memory of their own."""
            payload = self._learner.initial_weights().payload
            return timed(lambda: payload.copy())

    rounds = 3 if quick else 8
    learn = LearnConfig.model_validate({"objective": "group_relative", "kl_coefficient": 0.0, "threads": threads})
    engine = EngineConfig(model=model, max_model_len=256, max_running=32, threads=threads, reloads=True)
    sampling = Sampling(max_tokens=32)
    exports, pauses = [], []
    with cluster(dashboard=False):
        options: Any = {"runtime_env": worker_environment(threads, on_gpu=False), "num_cpus": 1}
        shell = ray.remote(PublishingShell).options(**options)
        learner = RemoteLearner(
            lambda _: shell.remote(
                learn, model=model, sampling=sampling, seed=0, name="learner", engines_in_float32=True
            ),
            name="learner",
        )
        settings = RolloutSettings(sampling=sampling, group_size=8, seed=0)
        rollout = RemoteRollout(
            lambda _: RolloutActor.options(**options).remote(engine, settings, name="rollout-0"),
            name="rollout-0",
            groups_at_once=8,
        )
        with asyncio.Runner() as loop:
            manifest, payload_ref = loop.run(_both(learner, rollout))
            lane: Any = Member(rollout)
            publication = Publication([lane], settings=PublishConfig(), initial=manifest)
            loop.run(publication.verify(manifest, payload_ref))
            version = 0

            async def publish() -> None:
                nonlocal version
                version += 1
                manifest, seconds, payload_ref = await learner.ask_parts("again", 3, version)
                receipts = await publication.publish(manifest, payload_ref)
                assert receipts[0].check.compared
                exports.append(seconds)
                pauses.append(receipts[0].pause_s)

            loop.run(publish())  # the first one pays for memory that later ones use again
            exports.clear()
            pauses.clear()
            measured = Rounds("publication of float32 weights with attestation, publications/s", 1.0)
            measured.take(rounds, lambda _: timed(lambda: loop.run(publish())), lambda _: loop.run(learner.ask("copy")))
        learner.end()
        rollout.end()
    times = [1 / ratio for ratio in measured.ratios]
    print(f"publication: {measured.ours} s; copies {measured.reference} s; export {exports} s; the engine paused for "
          f"{pauses} s", flush=True)  # fmt: skip
    return [
        Row("publication of float32 weights, attested, s (reference: one copy of the bytes)",
            statistics.median(measured.ours), statistics.median(measured.reference)),
        Row(f"the same, median of {rounds} rounds' ratios ({spread(times)})", statistics.median(times), goal="<= 3"),
        Row("of it export and the learner's canaries, s", statistics.median(exports)),
        Row("of it the engine's pause: load, comparison, canaries, s", statistics.median(pauses)),
    ]  # fmt: skip


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
