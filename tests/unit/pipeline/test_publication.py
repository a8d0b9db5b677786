from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from solon.errors import AttestationError, CallLostError, RunFailedError, WorkerLostError
from solon.events import event_line
from solon.pipeline.publication import Publication, PublishConfig
from solon.records import LoadReceipt, Weights
from tests.unit.fakes import FakeRollout, make_weights


def make_receipt(manifest: Weights, **changes: Any) -> LoadReceipt:
    receipt = LoadReceipt(
        engine="rollout-0",
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        checksum=f"checksum-{manifest.version}",
        canary_logprobs=manifest.canary_logprobs,
        pause_s=0.0,
    )
    return replace(receipt, **changes)


def make_publication(*engines: Any, tolerance: float = 1e-3, timeout_s: float = 5.0) -> Publication:
    settings = PublishConfig(logprob_tolerance=tolerance, timeout_s=timeout_s)
    return Publication(engines or [FakeRollout()], settings=settings, initial=make_weights(0))


async def test_every_engine_takes_and_attests_a_version():
    engines = [FakeRollout("rollout-0"), FakeRollout("rollout-1")]
    publication = make_publication(*engines)
    await publication.verify(make_weights(0), make_weights(0))
    assert publication.attested == 0
    for version in (1, 2):
        receipts = await publication.publish(make_weights(version), make_weights(version))
        assert [r.engine for r in receipts] == ["rollout-0", "rollout-1"]
    assert [engine.engine_version for engine in engines] == [2, 2]
    assert publication.attested == 2
    assert publication.max_gap == 0.0


async def test_an_update_that_changes_nothing_is_an_error():
    publication = make_publication()
    same = replace(make_weights(1), fingerprint=make_weights(0).fingerprint)
    with pytest.raises(AttestationError, match=r"same bytes.*learning_rate"):
        await publication.publish(same, same)


async def test_an_engine_that_keeps_computing_with_old_weights_is_found():
    publication = make_publication(FakeRollout(), FakeRollout("rollout-1", loads_silently_fail=True))
    with pytest.raises(AttestationError, match=r"rollout-1 computes other log-probs.*1\.00e\+00 nats"):
        await publication.publish(make_weights(1), make_weights(1))
    assert publication.attested == 0
    assert publication.max_gap == 0.0  # of attested versions only


async def test_an_engine_that_takes_too_long_is_named():
    @dataclass
    class Slow(FakeRollout):
        async def load_weights(self, weights: Weights) -> LoadReceipt:
            await asyncio.sleep(10)
            raise AssertionError

    with pytest.raises(WorkerLostError, match=r"rollout-0 did not take policy version 1.*publish\.timeout_s"):
        await make_publication(Slow(), timeout_s=0.01).publish(make_weights(1), make_weights(1))


async def test_parameters_that_did_not_move_are_found():
    @dataclass
    class Stuck(FakeRollout):
        async def load_weights(self, weights: Weights) -> LoadReceipt:
            return make_receipt(weights, checksum="always the same")

    publication = make_publication(Stuck())
    await publication.verify(make_weights(0), make_weights(0))
    with pytest.raises(AttestationError, match="live parameters did not change"):
        await publication.publish(make_weights(1), make_weights(1))


async def test_an_engine_that_computes_no_numbers_is_not_attested():
    @dataclass
    class Broken(FakeRollout):
        async def load_weights(self, weights: Weights) -> LoadReceipt:
            return make_receipt(weights, canary_logprobs=(weights.canary_logprobs[0], (math.nan,)))

    manifest = replace(make_weights(1), canary_logprobs=((-2.0, -2.0), (-1.0,)))
    with pytest.raises(AttestationError, match="inf nats"):
        await make_publication(Broken()).publish(manifest, manifest)


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"logprob_tolerance": -1}, {"tolerance": 1}])
def test_settings_out_of_bounds_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PublishConfig(**settings)


async def test_weights_whose_receipt_was_lost_are_sent_again_and_attested_once():
    class Unlucky(FakeRollout):
        sent = 0

        async def load_weights(self, weights: Weights) -> LoadReceipt:
            self.sent += 1
            receipt = await super().load_weights(weights)
            if self.sent == 1:
                raise CallLostError(f"{self.name} could not be reached")
            return receipt

    engine = Unlucky("rollout-0")
    publication = make_publication(engine)
    await publication.publish(make_weights(1), make_weights(1))
    assert (engine.sent, publication.attested) == (2, 1)


class Dying(FakeRollout):
    """Dies of new weights; `ends` tells whether it has a successor."""

    def __init__(self, name: str, ends: Exception | None) -> None:
        super().__init__(name)
        self.ends = ends
        self.again = asyncio.Event()

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        if not self.again.is_set():
            raise WorkerLostError(f"{self.name} died")
        return await super().load_weights(weights)

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """The test replaces it."""

    async def ready(self) -> bool:
        if self.ends is None:
            await self.again.wait()
        elif self.name.endswith("0"):
            return False  # given up while the other one was still there
        else:
            await asyncio.sleep(0.01)
            raise self.ends
        return True


async def test_a_publication_without_engines_ends_with_the_error_of_the_last_engine():
    publication = make_publication(*(Dying(f"rollout-{n}", RunFailedError("replaced 5 times")) for n in range(2)))
    with pytest.raises(RunFailedError, match="replaced 5 times"):
        await asyncio.wait_for(publication.publish(make_weights(1), make_weights(1)), timeout=5)
    assert publication.attested == 0


async def test_a_publication_waits_for_the_first_engine_that_joins_again():
    engines = [Dying(f"rollout-{n}", None) for n in range(2)]
    publication = make_publication(*engines)
    publishing = asyncio.ensure_future(publication.publish(make_weights(1), make_weights(1)))
    while publication._members:  # noqa: ASYNC110 - until both are lost
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    assert not publishing.done()
    engines[1].again.set()
    await asyncio.wait_for(publication.join(engines[1]), timeout=5)
    assert await asyncio.wait_for(publishing, timeout=5) == []
    assert publication.attested == 1
    await asyncio.wait_for(publication.publish(make_weights(2), make_weights(2)), timeout=5)
    assert (engines[0].engine_version, engines[1].engine_version) == (0, 2)


async def test_weights_of_an_earlier_incarnation_of_the_learner_replace_none_of_a_later_one():
    engine = FakeRollout()
    publication = make_publication(engine)
    first, second = (replace(make_weights(0), incarnation=number) for number in (0, 1))
    await publication.verify(first, first)
    publication.renew(second, "chunks of the new learner")
    publication.renew(first, "late chunks of the old one")
    assert publication._current == (second, "chunks of the new learner")


async def test_an_engine_that_proves_nothing_is_on_record_before_the_run_ends():
    events: list[dict[str, Any]] = []
    publication = Publication(
        [FakeRollout(), FakeRollout("rollout-1", loads_silently_fail=True)],
        settings=PublishConfig(logprob_tolerance=1e-3),
        initial=make_weights(0),
        emit=lambda name, **fields: events.append(event_line(name, time_s=0.0, **fields)),
    )
    with pytest.raises(AttestationError) as failure:
        await publication.publish(make_weights(1), make_weights(1))
    assert [(line["event"], line["worker"], line["version"]) for line in events] == [
        ("attestation_failed", "rollout-1", 1)
    ]
    assert events[0]["cause"] == str(failure.value)
