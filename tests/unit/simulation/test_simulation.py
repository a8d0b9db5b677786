"""The simulator against theory: what a queue, a bound or a schedule says without simulating."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from solon.errors import RunFailedError
from solon.recovery.config import RecoveryConfig
from solon.simulation.draws import GroupLengths
from solon.simulation.run import simulate
from solon.simulation.scenario import Failures, Lengths, Prices, Scenario
from solon.simulation.stations import Rate, Station
from solon.simulation.virtual_time import run_virtual

FIXED = Lengths(mean=100, sigma=0, max_tokens=100)
FAST = ((1.0, 1e6),)


def make_scenario(**changes: Any) -> Scenario:
    """A run in which nothing but what `changes` say takes time: groups of one answer of 100 tokens."""
    quick: dict[str, Any] = {
        "lengths": FIXED, "group_size": 1, "prompt_tokens": 1, "rollout_rate": FAST, "judge_rate": FAST,
        "learner_s": 0.0, "publish_s": 0.0, "publish_pause_s": 0.0, "batch_groups": 8, "steps": 40,
    }  # fmt: skip
    return Scenario(**{**quick, **changes})


def failing(seed: int = 0, **changes: Any) -> Scenario:
    return Scenario(
        engines=4, judges=2, steps=40, batch_groups=16, seed=seed, target_staleness=2, lengths=Lengths(mean=300),
        failures=Failures(
            rollout_mtbf_s=200, judge_mtbf_s=300, learner_mtbf_s=300, spot_mtbf_s=600, rollout_restart_s=20
        ),
        recovery=RecoveryConfig(max_restarts=100), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("servers", [1, 3])
def test_a_lane_of_c_servers_with_fixed_times_works_at_c_groups_a_service_time(servers: int):
    # 100 tokens at 20 tokens/s: one group at a time takes an engine 5 s. M/D/c at its limit.
    done = simulate(make_scenario(engines=servers, slots=1, rollout_rate=((1, 20.0),), target_staleness=4))
    assert done.wall_s == pytest.approx(done.groups * 5 / servers, rel=0.03)
    assert done.utilisation["generate"] == pytest.approx(1, abs=0.03)
    assert done.binding_stage == "generate"


def test_an_engine_works_at_exactly_the_rate_of_its_table_whatever_the_lengths():
    scenario = make_scenario(
        lengths=Lengths(mean=100, sigma=1.0, max_tokens=3000), group_size=4, slots=64, batch_groups=64, steps=20,
        rollout_rate=((0.1, 100.0),), target_staleness=4, lease_s=1e6,
    )  # fmt: skip
    done = simulate(scenario)
    assert done.tokens / 100 == pytest.approx(done.wall_s, rel=0.05)


@pytest.mark.parametrize("binding", ["generate", "label", "learn"])
def test_a_run_takes_as_long_as_its_slowest_lane(binding: str):
    # A step takes a lane 8 s, or the binding one 12 s: the bound is max(Tg, Tj, Tt).
    seconds = {"generate": 8.0, "label": 8.0, "learn": 8.0, binding: 12.0}
    done = simulate(
        make_scenario(
            slots=1, rollout_rate=((1, 800 / seconds["generate"]),), judge_slots=1,
            judge_rate=((1, 8 / seconds["label"]),), learner_s=seconds["learn"], target_staleness=3, steps=60,
        )
    )  # fmt: skip
    assert done.binding_stage == binding
    assert 12 * 60 <= done.wall_s <= 12 * 60 * 1.05
    assert done.efficiency >= 0.95


def test_lockstep_takes_the_sum_of_its_stages():
    scenario = make_scenario(
        slots=8, rollout_rate=((8, 100.0),), judge_slots=8, judge_rate=((8, 2.0),), learner_s=3.0, publish_s=1.0,
        target_staleness=0, lockstep=True, steps=10,
    )  # fmt: skip
    done = simulate(scenario)
    # 8 groups of 100 tokens at 100 tokens/s, 8 groups at 2 a second, 3 s and 1 s; nothing overlaps.
    assert done.wall_s == pytest.approx(10 * (8 + 4 + 3 + 1), rel=0.001)
    assert dict(done.staleness) == {0: 80}


def test_publication_takes_the_engines_in_waves():
    one = simulate(make_scenario(engines=8, publish_s=2.0, steps=5))
    four = simulate(make_scenario(engines=8, publish_s=2.0, steps=5, publish_at_once=4))
    assert (one.publish_s, four.publish_s) == (pytest.approx(16), pytest.approx(4))


def test_a_learner_is_hardly_idle_once_generation_runs_far_enough_ahead():
    ahead = [
        simulate(Scenario(engines=4, steps=60, learner_s=40, target_staleness=target, seed=1)).busy["learn"]
        for target in (0, 1, 2)
    ]
    assert ahead == sorted(ahead)
    assert ahead[2] > 0.9  # the first batch has to be generated


@pytest.mark.parametrize("seed", range(3))
def test_under_failures_nothing_is_lost_or_trained_twice_and_the_bound_holds(seed: int):
    done = simulate(failing(seed, max_staleness=2))
    assert done.faults["worker_lost"] > 5
    assert done.faults["group_lost"] > 0
    assert (done.lost, done.twice, done.violations) == (0, 0, 0)
    assert done.groups == 640
    assert done.staleness_max <= 2


def test_one_scenario_is_one_run_event_for_event_and_another_seed_another_one():
    first, again, other = (simulate(failing(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first.digest == again.digest != other.digest


def test_the_order_of_hashes_of_a_process_changes_nothing():
    code = (
        "from tests.unit.simulation.test_simulation import failing\nfrom solon.simulation.run import simulate\n"
        "print(simulate(failing()).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_worker_that_dies_too_often_ends_the_run_as_it_would_a_real_one():
    hopeless = Scenario(steps=50, failures=Failures(rollout_mtbf_s=2))
    with pytest.raises(RunFailedError, match=r"recovery\.max_restarts"):
        simulate(hopeless)


def test_a_group_that_is_generated_again_has_the_same_lengths():
    scenario = Scenario(seed=3)
    forwards, backwards = GroupLengths(scenario), GroupLengths(scenario)
    ordinals = [0, 9000, 20_000]
    assert [forwards.total(n) for n in ordinals] == [backwards.total(n) for n in reversed(ordinals)][::-1]


def test_lengths_have_the_mean_that_was_asked_for_and_observed_ones_are_drawn_as_they_are():
    drawn = GroupLengths(Scenario(lengths=Lengths(mean=500, sigma=0.7, max_tokens=100_000), group_size=8))
    assert sum(drawn.total(n) for n in range(8000)) / 64_000 == pytest.approx(500, rel=0.02)
    seen = GroupLengths(Scenario(lengths=Lengths(observed=(3, 7)), group_size=2))
    assert {seen.total(n) for n in range(100)} == {6, 10, 14}


def test_cost_is_accelerator_hours_at_the_price_of_each_pool():
    done = simulate(
        make_scenario(
            engines=3, accelerators_per_engine=2, learner_ranks=4, learner_s=36.0, steps=100,
            prices=Prices(rollout=1, judge=2, learner=3),
        )
    )  # fmt: skip
    assert done.cost_usd == pytest.approx((3 * 2 * 1 + 1 * 2 + 4 * 3) * done.wall_s / 3600)


def test_a_station_shares_its_rate_and_stands_still_while_it_is_paused():
    async def main(_: object) -> list[tuple[str, float]]:
        loop, ends = asyncio.get_running_loop(), []
        station = Station(Rate(((2, 2.0),)), loop, lambda items: ends.extend((item, loop.time()) for item in items))
        station.enter("long", work=10, load=1)
        await asyncio.sleep(2)  # alone: 1 a second
        station.enter("short", work=3, load=1)  # two of them: 1 a second each
        station.enter("third", work=3, load=1)  # three of them: 2/3 a second each
        await asyncio.sleep(1)
        station.pause()
        await asyncio.sleep(10)
        station.resume()
        await asyncio.sleep(30)
        return ends

    ends, _, _ = run_virtual(main)
    assert [(item, round(end, 3)) for item, end in ends] == [("short", 16.5), ("third", 16.5), ("long", 21.5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_rate": ()}, "rollout_rate.*is empty, expected at least one"),
        ({"judge_rate": ((4, 1.0), (2, 3.0))}, "judge_rate.*expected ascending ones; sort the table"),
        ({"publish_pause_s": 3.0}, "publish_pause_s = 3 exceeds publish_s = 1, expected at most that"),
        ({"target_staleness": 5}, "lower target_staleness or raise max_staleness"),
        ({"lockstep": True}, "lockstep with target_staleness = 1, expected 0"),
        ({"lengths": {"observed": (0, 3)}}, "a length of 0 tokens, expected at least 1"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_with_its_reason(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        Scenario(**changes)
