"""The loop on fakes: the same page that runs on Ray."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from solon.errors import AttestationError, RunFailedError
from solon.ledger.staleness import StalenessConfig
from solon.loop import run_loop
from tests.unit.fakes import FakeJudge, FakeLearner, FakeRollout, make_lanes
from tests.unit.virtual_time import EPOCH, run_virtual


async def run(lanes, *, steps=5, stop=None):
    return await asyncio.wait_for(run_loop(lanes, steps=steps, min_valid=2, stop=stop or asyncio.Event()), timeout=20)


async def test_all_steps_are_trained_published_and_nothing_is_left():
    learner = FakeLearner()
    lanes, witness = make_lanes(learner=learner)
    assert await run(lanes) == 5
    counts = await lanes.ledger.counts()
    assert counts["admitted"] == counts["committed"] == 20
    assert sorted(o for batch in learner.batches for o in batch) == list(range(20))
    assert witness.versions == [1, 2, 3, 4, 5]
    assert lanes.publication.attested == 5


async def test_a_prompt_is_fixed_by_its_ordinal_alone():
    first, second = make_lanes()[0].prompts, make_lanes()[0].prompts
    assert [first[n].prompt_id for n in range(30)] == [second[n].prompt_id for n in reversed(range(30))][::-1]


@pytest.mark.parametrize("target", [0, 1, 2])
async def test_staleness_never_exceeds_the_bound_with_slow_engines_and_judges(target):
    rollout = [FakeRollout(name="rollout-0", delay_s=0.004), FakeRollout(name="rollout-1", delay_s=0.0005)]
    lanes, witness = make_lanes(
        steps=12,
        staleness=StalenessConfig(target_staleness=target, max_staleness=2),
        rollout=rollout,
        judges=[FakeJudge(delay_s=0.001)],
        learner=FakeLearner(delay_s=0.002),
    )
    assert await run(lanes, steps=12) == 12
    assert max(witness.staleness) <= 2


async def test_with_target_zero_nothing_is_generated_while_a_batch_is_unpublished():
    rollout = FakeRollout()
    lanes, witness = make_lanes(
        rollout=[rollout], staleness=StalenessConfig(target_staleness=0), learner=FakeLearner(delay_s=0.005)
    )
    await run(lanes)
    assert set(witness.staleness) == {0}
    assert all(version == ordinal // 4 for ordinal, version in rollout.started)


async def test_lockstep_labels_only_when_the_whole_batch_is_generated():
    lanes, witness = make_lanes(
        rollout=[FakeRollout(delay_s=0.001)],
        judges=[FakeJudge()],
        staleness=StalenessConfig(target_staleness=0),
        lockstep=True,
    )
    order = []
    lanes.observer.generated = lambda report, payload_ref: order.append("g")
    lanes.observer.labelled = lambda report, payload_ref: order.append("l")
    await run(lanes)
    assert "".join(order) == "ggggllll" * 5


async def test_a_group_without_valid_labels_is_dropped_with_a_reason_and_replaced():
    learner = FakeLearner()
    lanes, witness = make_lanes(learner=learner, judges=[FakeJudge(speechless=frozenset({2}))])
    assert await run(lanes) == 5
    counts = await lanes.ledger.counts()
    assert (counts["admitted"], counts["committed"], counts["dropped"]) == (21, 20, 1)
    assert 2 not in {ordinal for batch in learner.batches for ordinal in batch}
    ((name, fields),) = [event for event in witness.events if event[0] == "group_dropped"]
    assert fields["ordinal"] == 2
    assert "low_mass 2" in fields["reason"]


async def test_a_judge_that_never_has_a_verdict_ends_the_run_with_the_cause():
    lanes, _ = make_lanes(judges=[FakeJudge(speechless=frozenset(range(10_000)))])
    with pytest.raises(RunFailedError, match=r"dropped.*low_mass"):
        await run(lanes)


async def test_a_stage_that_dies_ends_the_run_with_its_own_error():
    lanes, _ = make_lanes(judges=[FakeJudge(error=RunFailedError("judge-0 died"))])
    with pytest.raises(RunFailedError, match="judge-0 died"):
        await run(lanes)


async def test_an_engine_that_keeps_old_weights_stops_the_run():
    lanes, _ = make_lanes(rollout=[FakeRollout(loads_silently_fail=True)])
    with pytest.raises(AttestationError, match="other log-probs than the learner"):
        await run(lanes)


async def test_stop_ends_after_the_current_step_and_generated_groups_were_observed():
    stop = asyncio.Event()
    learner = FakeLearner(delay_s=0.005)
    lanes, witness = make_lanes(steps=1000, learner=learner)
    lanes.observer.stepped = lambda lease, report: stop.set() if lease.step == 2 else None
    committed = await run(lanes, steps=1000, stop=stop)
    assert committed == len(learner.batches) == 3
    counts = await lanes.ledger.counts()
    assert counts["committed"] == 12
    assert len(witness.generated_ordinals) == counts["admitted"]


async def test_a_checkpoint_is_offered_after_every_committed_step():
    lanes, _ = make_lanes()
    seen = []

    async def checkpoint(step: int) -> None:
        seen.append((step, (await lanes.ledger.counts())["committed"]))

    await run(replace(lanes, checkpoint=checkpoint))
    assert seen == [(n, 4 * n) for n in range(1, 6)]


def test_two_hundred_steps_of_sixteen_simulated_hours_take_two_seconds_and_leave_no_task():
    learner, spans = FakeLearner(delay_s=288), []

    def main(clock):
        rollout = [FakeRollout(f"rollout-{n}", delay_s=40 + 10 * n) for n in range(3)]
        lanes, witness = make_lanes(
            steps=200, clock=clock, rollout=rollout, judges=[FakeJudge(delay_s=20)], learner=learner, lease_s=3600
        )
        witness.published = lambda version, receipts, gap, span: spans.append(span)
        return run_loop(lanes, steps=200, min_valid=2, stop=asyncio.Event())

    began = time.process_time()
    committed, simulated_s, left_behind = run_virtual(main)
    assert time.process_time() - began < 2
    assert (committed, len(learner.batches)) == (200, 200)
    assert 16 * 3600 < simulated_s < 17 * 3600
    assert left_behind == set()
    assert EPOCH + 16 * 3600 < spans[-1].end_s < EPOCH + 17 * 3600


def test_a_group_that_an_engine_holds_too_long_is_given_to_another_when_its_lease_ends_in_virtual_time():
    events = []

    def main(clock):
        lanes, _ = make_lanes(
            steps=3,
            clock=clock,
            rollout=[FakeRollout("stuck", groups_at_once=1, delay_s=10**6), FakeRollout("sound", delay_s=1)],
            lease_s=600,
        )
        lanes.ledger.listen(lambda name, **fields: events.append(name))
        return run_loop(replace(lanes, grace_s=5), steps=3, min_valid=2, stop=asyncio.Event())

    committed, simulated_s, left_behind = run_virtual(main)
    assert (committed, left_behind) == (3, set())
    assert "group_expired" in events
    assert 600 < simulated_s < 700


def test_who_follows_the_ledger_sees_which_worker_gets_every_group():
    got: dict[str, list[tuple[str, int]]] = {"granted": [], "taken": []}

    def main(clock):
        lanes, _ = make_lanes(steps=3, clock=clock, rollout=[FakeRollout("rollout-0"), FakeRollout("rollout-1")])
        lanes.ledger.follow(
            granted=lambda holder, grants: got["granted"].extend((holder, grant.ordinal) for grant in grants),
            taken=lambda holder, work: got["taken"].extend((holder, item.ordinal) for item in work),
        )
        lanes.ledger.listen(lambda name, **fields: None)  # the audit listens later, and replaces none
        return run_loop(lanes, steps=3, min_valid=2, stop=asyncio.Event())

    run_virtual(main)
    for kind, prefix in (("granted", "rollout-"), ("taken", "judge")):
        ordinals = [ordinal for _, ordinal in got[kind]]
        assert len(set(ordinals)) == len(ordinals)  # nothing was lost
        assert all(holder.startswith(prefix) for holder, _ in got[kind])
    assert {ordinal for _, ordinal in got["taken"]} <= {ordinal for _, ordinal in got["granted"]}
