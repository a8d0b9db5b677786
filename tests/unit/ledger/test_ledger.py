"""The ledger under random schedules: the invariants in its docstring."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import RunFailedError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import Ledger, LedgerConfig
from solon.ledger.staleness import StalenessConfig, choose


def make_ledger(*, batch=2, target=1, bound=4, total=None, **config) -> Ledger:
    return Ledger(
        LedgerConfig(batch_groups=batch, **config),
        StalenessConfig(target_staleness=target, max_staleness=bound),
        total_groups=total,
    )


def generate(ledger: Ledger, grant) -> bool:
    return ledger.commit_generation(grant.ordinal, grant.attempt, head=grant.version, nbytes=10, payload="g")


def make_ready(ledger: Ledger, grant) -> None:
    assert generate(ledger, grant)
    (work,) = ledger.take_generated(1, now=0.0)
    assert ledger.commit_labels(work.ordinal, work.attempt, nbytes=1, payload="f")


def test_admission_stops_at_target_plus_one_batches():
    ledger = make_ledger(batch=4, target=1)
    assert len(ledger.reserve(100, now=0)) == 8
    assert ledger.reserve(100, now=0) == []


def test_groups_under_judgement_hold_their_credit():
    ledger = make_ledger(batch=2, target=0)
    for grant in ledger.reserve(9, now=0):
        generate(ledger, grant)
    assert len(ledger.take_generated(9, now=0)) == 2
    assert ledger.reserve(9, now=0) == []


def test_a_trained_batch_gives_its_credit_back_only_when_published():
    ledger = make_ledger(batch=2, target=0)
    for grant in ledger.reserve(9, now=0):
        make_ready(ledger, grant)
    lease = ledger.lease(0)
    assert ledger.commit(0, lease.token)
    assert ledger.reserve(9, now=0) == []
    assert ledger.publish(1)
    assert [g.version for g in ledger.reserve(9, now=0)] == [1, 1]


def test_held_bytes_stop_admission():
    ledger = make_ledger(batch=2, target=3, max_held_mib=15 / 2**20)
    first, second = ledger.reserve(2, now=0)
    assert generate(ledger, first)
    assert len(ledger.reserve(1, now=0)) == 1  # 10 bytes of 15
    assert generate(ledger, second)
    assert ledger.reserve(1, now=0) == []  # 20 bytes


def test_a_batch_larger_than_the_byte_budget_is_admitted_alone():
    ledger = make_ledger(batch=3, target=3, total=6, max_held_mib=1 / 2**20)
    for step in range(2):
        for number in range(3):
            (grant,) = ledger.reserve(1, now=0)  # the budget is over from the first group on
            assert grant.ordinal == 3 * step + number
            make_ready(ledger, grant)
        assert ledger.reserve(1, now=0) == []
        lease = ledger.lease(step)
        assert ledger.reserve(1, now=0) == []  # not beside a batch that is trained
        assert ledger.commit(step, lease.token)
        assert ledger.publish(step + 1)
    assert ledger.is_drained


def test_unwritten_bytes_count_against_the_byte_budget_and_can_stop_all_admission():
    ledger = make_ledger(batch=2, target=3, max_held_mib=15 / 2**20)
    (grant,) = ledger.reserve(1, now=0)
    assert generate(ledger, grant)
    ledger.unwritten_bytes = 10  # with the 10 held more than the budget: the rest of one batch is let through
    assert len(ledger.reserve(9, now=0)) == 1
    assert ledger.reserve(9, now=0) == []
    other = make_ledger(batch=2, target=3, max_held_mib=15 / 2**20)
    other.unwritten_bytes = 15
    assert other.reserve(1, now=0) == []
    other.unwritten_bytes = 14
    assert len(other.reserve(1, now=0)) == 1


def test_a_late_result_of_an_expired_attempt_is_refused():
    ledger = make_ledger(lease_s=5)
    (grant,) = ledger.reserve(1, now=0)
    assert ledger.expire(now=4.9) == []
    assert ledger.expire(now=5.0) == [0]
    (again,) = ledger.reserve(1, now=6)
    assert (again.ordinal, again.attempt) == (0, 1)
    assert not generate(ledger, grant)
    assert generate(ledger, again)
    assert not generate(ledger, again)  # the same report twice changes nothing


def test_a_retry_starts_with_the_version_that_is_live_then():
    ledger = make_ledger(batch=1, target=1)
    first, second = ledger.reserve(2, now=0)
    make_ready(ledger, second)
    ledger.commit(0, ledger.lease(0).token)
    ledger.publish(1)
    ledger.fail(first.ordinal, 0, "engine died")
    retried = ledger.reserve(1, now=0)[0]
    assert (retried.ordinal, retried.version) == (0, 1)


def test_after_the_last_attempt_a_group_is_dropped_with_its_reason():
    ledger = make_ledger(max_attempts=2)
    ledger.reserve(1, now=0)
    ledger.fail(0, 0, "timeout")
    ledger.reserve(1, now=0)
    ledger.fail(0, 1, "timeout")
    assert ledger.dropped == {"timeout": 1}
    assert ledger.held() == []


def test_too_many_drops_fail_the_run_with_a_table_of_causes():
    ledger = make_ledger(batch=50, max_attempts=1)
    ledger.reserve(50, now=0)
    for ordinal in range(39):
        ledger.fail(ordinal, 0, "no label")
    with pytest.raises(RunFailedError, match=r"40 of 40 .*allows: 40 because no label"):
        ledger.fail(39, 0, "no label")


def test_an_aborted_step_leaves_its_groups_ready_and_an_old_token_commits_nothing():
    ledger = make_ledger(batch=2)
    for grant in ledger.reserve(2, now=0):
        make_ready(ledger, grant)
    old = ledger.lease(0)
    assert ledger.abort(0, old.token)
    new = ledger.lease(0)
    assert new.ordinals == old.ordinals
    assert not ledger.commit(0, old.token)
    assert ledger.commit(0, new.token)
    assert not ledger.commit(0, new.token)


def test_the_next_step_waits_for_its_turn_and_any_other_is_an_error():
    ledger = make_ledger(batch=1)
    for grant in ledger.reserve(2, now=0):
        make_ready(ledger, grant)
    lease = ledger.lease(0)
    assert ledger.lease(1) is None
    with pytest.raises(RunFailedError, match="holds the lease"):
        ledger.lease(2)
    ledger.commit(0, lease.token)
    assert ledger.lease(1).ordinals == (1,)


def test_choose_waits_for_an_unfinished_group_whose_deadline_is_now():
    assert choose([(4, 1), (4, 2)], {0: 1}, step=0, batch_groups=2) is None
    assert choose([(4, 1), (4, 2)], {1: 1}, step=0, batch_groups=2) == [1, 2]


def test_choose_lets_the_young_overtake_only_while_the_old_still_fit():
    # Three unfinished groups must be trained by step 1, and a batch holds two.
    assert choose([(5, 8), (5, 9)], {1: 3}, step=0, batch_groups=2) is None
    assert choose([(5, 8), (5, 9)], {1: 2}, step=0, batch_groups=2) == [8, 9]


@given(
    ready=st.lists(st.integers(0, 6), max_size=12),
    unfinished=st.lists(st.integers(0, 6), max_size=12),
    batch=st.integers(1, 4),
)
def test_choose_is_exactly_the_feasibility_rule(ready, unfinished, batch):
    step = 0
    pairs = sorted((deadline, ordinal) for ordinal, deadline in enumerate(ready))
    chosen = choose(pairs, Counter(unfinished), step=step, batch_groups=batch)
    if len(pairs) < batch:
        assert chosen is None
        return
    left = [deadline for deadline, _ in pairs[batch:]] + unfinished
    feasible = all(sum(d <= step + 1 + k for d in left) <= (k + 1) * batch for k in range(20))
    feasible = feasible and not any(d <= step for d in left)
    assert (chosen is not None) == feasible


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 5),
    target=st.integers(0, 3),
    slack=st.integers(0, 3),
    publish_lag=st.integers(0, 2),
    budget=st.sampled_from([1, 11, 35, 10**6]),
)
def test_random_schedules_keep_every_invariant(seed, batch, target, slack, publish_lag, budget):
    steps = 25
    rng = random.Random(seed)
    ledger = make_ledger(
        batch=batch,
        target=target,
        bound=target + slack,
        total=batch * steps,
        max_dropped_share=1.0,
        lease_s=50,
        max_held_mib=budget / 2**20,  # groups of 11 bytes: less than one, one, three, all
    )
    generating, judging, unpublished, committed = [], [], [], []
    lease, step, now = None, 0, 0.0
    for _ in range(20_000):
        now += 1.0
        action = rng.choice("rrgggjjjlcpfe")
        if action == "r":
            generating += ledger.reserve(rng.randint(1, 2 * batch), now=now)
        elif action == "g" and generating:
            # Heavy tails: old groups are sometimes overtaken for long.
            generate(ledger, generating.pop(rng.randrange(len(generating))))
        elif action == "j":
            judging += ledger.take_generated(rng.randint(1, 3), now=now)
            if judging and rng.random() < 0.7:
                work = judging.pop(rng.randrange(len(judging)))
                ledger.commit_labels(work.ordinal, work.attempt, nbytes=1, payload=None)
        elif action == "l" and lease is None and step < steps and len(unpublished) <= publish_lag:
            lease = ledger.lease(step)
            if lease:
                assert len(lease.ordinals) == batch
                assert max(lease.staleness) <= target + slack
        elif action == "c" and lease is not None:
            if rng.random() < 0.1:
                assert ledger.abort(lease.step, lease.token)
            else:
                assert ledger.commit(lease.step, lease.token)
                committed += lease.ordinals
                unpublished.append(step + 1)
                step += 1
            lease = None
        elif action == "p" and unpublished:
            assert ledger.publish(unpublished.pop(0))
        elif action == "f" and judging and rng.random() < 0.2:
            work = judging.pop()
            ledger.fail(work.ordinal, work.attempt, "chaos")
        elif action == "e":
            ledger.expire(now=now)
        counts = ledger.counts()
        assert counts["admitted"] == counts["committed"] + counts["dropped"] + len(ledger.held())
        if ledger.is_drained:
            break
    assert step == steps, "the schedule got stuck"
    assert len(committed) == len(set(committed)) == batch * steps
    assert counts["held_bytes"] == 0


# -- losses, and another process ------------------------------------------------------------------------------------


def test_tokens_of_a_version_that_is_still_rolled_out_may_be_continued_by_an_engine_without_it():
    ledger = make_ledger()
    (grant,) = ledger.reserve(1, now=0, holder="first")
    # The first engine holds version 1 already, the second still version 0; the ledger hears of 1 when all hold it.
    assert ledger.keep(grant.ordinal, grant.attempt, head=1, salvage="tokens")
    assert ledger.requeue(grant.ordinal, grant.attempt, "the first engine left its pool", is_loss=False)
    (again,) = ledger.reserve(1, now=0, holder="second")
    assert (again.ordinal, again.version, again.salvage) == (grant.ordinal, 0, ("tokens",))
    assert ledger.commit_generation(again.ordinal, again.attempt, head=0, nbytes=1, payload="a group")


def test_a_group_lost_with_its_engine_is_generated_again_from_the_same_sample_index_and_the_old_attempt_is_refused():
    ledger = make_ledger()
    (grant,) = ledger.reserve(1, now=0)
    assert ledger.requeue(grant.ordinal, grant.attempt, "killed")
    (again,) = ledger.reserve(1, now=0)
    assert (again.ordinal, again.attempt, again.sample_index) == (0, 1, 0)
    assert not generate(ledger, grant)
    assert ledger.fail(again.ordinal, again.attempt, "nonsense")
    (third,) = ledger.reserve(1, now=0)
    assert (third.ordinal, third.attempt, third.sample_index) == (0, 2, 1)


def test_a_group_lost_with_its_judge_is_labelled_by_another_and_not_generated_again():
    ledger = make_ledger()
    (grant,) = ledger.reserve(1, now=0)
    generate(ledger, grant)
    (work,) = ledger.take_generated(1, now=0)
    assert ledger.return_work(work.ordinal, work.attempt, "killed")
    assert not ledger.commit_labels(work.ordinal, work.attempt, nbytes=1, payload="f")
    (again,) = ledger.take_generated(1, now=0)
    assert again == work
    assert ledger.commit_labels(again.ordinal, again.attempt, nbytes=1, payload="f")


def test_losses_and_failures_are_counted_apart():
    ledger = make_ledger(max_attempts=2, max_losses=3)
    heard = []
    ledger.on_drop = lambda ordinal, reason: heard.append((ordinal, reason))
    for attempt in range(2):
        ledger.reserve(1, now=0)
        assert ledger.requeue(0, attempt, "killed")
    assert heard == []
    ledger.reserve(1, now=0)
    assert ledger.requeue(0, 2, "killed")
    assert heard == [(0, "lost 3 times, last: killed")]
    assert ledger.counts()["dropped"] == 1


def test_a_ready_group_can_be_lost_and_is_then_not_leased():
    ledger = make_ledger(batch=2)
    for grant in ledger.reserve(2, now=0):
        make_ready(ledger, grant)
    assert ledger.requeue(1, 0, "its node is gone")
    assert ledger.lease(0) is None
    assert ledger.counts()["held_bytes"] == 11


def test_the_holder_of_a_group_and_its_time_are_known():
    ledger = make_ledger()
    ledger.reserve(1, now=10, holder="rollout-0")
    (grant,) = ledger.reserve(1, now=12, holder="rollout-1")
    generate(ledger, grant)
    ledger.take_generated(1, now=13, holder="judge-0")
    assert [(o["ordinal"], o["holder"], o["seconds"]) for o in ledger.out(now=15)] == [
        (0, "rollout-0", 5),
        (1, "judge-0", 2),
    ]


def test_closed_admission_keeps_groups_that_wait_for_another_attempt():
    ledger = make_ledger()
    ledger.reserve(1, now=0)
    ledger.requeue(0, 0, "killed")
    ledger.close()
    assert ledger.reserve(5, now=0) == []
    assert ledger.held() == [0]
    assert ledger.dropped == {}


def test_a_group_too_old_to_be_trained_after_a_resume_is_generated_again():
    ledger = make_ledger(batch=1, target=1, bound=1)
    for grant in ledger.reserve(2, now=0):
        make_ready(ledger, grant)
    cut, payloads = ledger.cut()
    resumed = make_ledger(batch=1, target=1, bound=1)
    resumed.restore(cut, payloads, version=2)
    assert [g.ordinal for g in resumed.reserve(2, now=0)] == [0, 1]


def test_a_ledger_in_use_takes_no_cut():
    ledger = make_ledger()
    cut, _ = ledger.cut()
    ledger.reserve(1, now=0)
    with pytest.raises(RunFailedError, match="make a new one"):
        ledger.restore(cut, {}, version=0)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 4), target=st.integers(0, 2))
def test_a_run_cut_and_restored_at_any_moment_trains_every_group_once(seed: int, batch: int, target: int):
    rng, steps = random.Random(seed), 12
    trained: list[int] = []

    def fresh() -> Ledger:
        return make_ledger(batch=batch, target=target, total=steps * batch, max_losses=10_000, max_attempts=10_000)

    ledger, step, granted, judging = fresh(), 0, {}, {}
    saved: tuple[int, list[int], object, object] = (0, [], *ledger.cut())
    for _ in range(20_000):
        if step == steps:
            break
        match rng.choice(["reserve", "generate", "judge", "label", "train", "requeue", "return", "cut", "die"]):
            case "reserve":
                granted |= {g.ordinal: g for g in ledger.reserve(rng.randint(1, 4), now=0)}
            case "generate" if granted:
                generate(ledger, granted.pop(rng.choice(list(granted))))
            case "judge":
                judging |= {w.ordinal: w for w in ledger.take_generated(2, now=0)}
            case "label" if judging:
                work = judging.pop(rng.choice(list(judging)))
                ledger.commit_labels(work.ordinal, work.attempt, nbytes=1, payload="f")
            case "requeue" if granted:
                lost = granted.pop(rng.choice(list(granted)))
                ledger.requeue(lost.ordinal, lost.attempt, "killed")
            case "return" if judging:
                work = judging.pop(rng.choice(list(judging)))
                ledger.return_work(work.ordinal, work.attempt, "killed")
            case "train" if (lease := ledger.lease(step)) is not None:
                assert max(lease.staleness) <= 4
                assert all(payload == ("g", "f") for payload in lease.payloads)
                trained += lease.ordinals
                ledger.commit(step, lease.token)
                step += 1
                ledger.publish(step)
            case "cut":
                saved = (step, list(trained), *ledger.cut())
            case "die" if rng.random() < 0.2:
                step, kept, cut, payloads = saved
                trained, ledger, granted, judging = list(kept), fresh(), {}, {}
                ledger.restore(cut, payloads, version=step)  # type: ignore[arg-type]
        counts = ledger.counts()
        assert counts["admitted"] == counts["committed"] + counts["dropped"] + counts["held"]
    assert sorted(trained) == list(range(steps * batch))


async def test_a_worker_that_waits_for_a_credit_is_woken_when_the_disk_has_caught_up():
    ledger = AsyncLedger(
        LedgerConfig(batch_groups=2, max_held_mib=15 / 2**20), StalenessConfig(target_staleness=1, max_staleness=4)
    )
    ledger.hold_back(20)
    waiting = asyncio.ensure_future(ledger.reserve(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    ledger.hold_back(16)
    await asyncio.sleep(0.01)
    assert not waiting.done()  # still more than the budget
    assert (await ledger.counts())["unwritten_bytes"] == 16
    ledger.hold_back(0)
    assert len(await asyncio.wait_for(waiting, 1)) == 1
    await ledger.close()
