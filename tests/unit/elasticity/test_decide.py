"""The decision about sizes: bounds, one step at a time, no oscillation, convergence. And its measurements."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.elasticity.decide import Bounds, Limits, Load, Past, PoolLoad, PoolPast, decide
from solon.elasticity.service import Service, ServiceFit, fitted
from solon.pipeline.usage import Usage

MOST = 6
QUICK = Service(0.01, 0.0)
EVERY_S = 15.0
services = st.builds(Service, st.floats(0.05, 30.0), st.one_of(st.just(0.0), st.floats(0.001, 5.0)))
learning = st.floats(0.02, 5.0)
places = st.sampled_from([1.0, 2.0, 4.0, 16.0])


def limits_of(least: int = 1, most: int = MOST, **options: float) -> Limits:
    return Limits(pools={"rollout": Bounds(least=least, most=most), "judge": Bounds(least=1, most=MOST)}, **options)


def load_of(
    rollout: Service | None,
    judge: Service | None = QUICK,
    *,
    size: int = 1,
    judges: int = 1,
    learn_s: float | None = 0.5,
    now_s: float = 0.0,
    places: float = 4.0,
    in_flight: float = 16.0,
) -> Load:
    pools = {
        "rollout": PoolLoad(size=size, service=rollout, places=places),
        "judge": PoolLoad(size=judges, service=judge, places=places),
    }
    return Load(now_s=now_s, learn_s=learn_s, in_flight=in_flight, pools=pools)


def decided(load_at, sizes: dict[str, int], *, rounds: int, limits: Limits) -> list[dict[str, int]]:
    """The sizes after every decision. load_at(round, sizes): what is measured then."""
    found, past = [], Past()
    for number in range(rounds):
        load = load_at(number, sizes)
        decision = decide(replace(load, now_s=number * EVERY_S), limits, past)
        sizes, past = {name: size.size for name, size in decision.sizes.items()}, decision.past
        found.append(sizes)
    return found


def constant(rollout: Service, judge: Service, learn_s: float, places: float, noise: float = 0.0, seed: int = 0):
    draw = random.Random(seed)

    def noisy(service: Service) -> Service:
        factor = 1 + draw.uniform(-noise, noise)
        return Service(service.base_s * factor, service.each_s * factor)

    def at(number: int, sizes: dict[str, int]) -> Load:
        return load_of(
            noisy(rollout), noisy(judge), size=sizes["rollout"], judges=sizes["judge"], learn_s=learn_s, places=places
        )

    return at


@given(services, services, learning, places, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_sizes_stay_within_bounds_and_move_one_step_up_or_one_lane_down(
    rollout, judge, learn_s, places, size, judges, step
):
    limits = limits_of(2, 5, max_step=step, cooldown_s=0, agreeing=1)
    load = load_of(rollout, judge, size=size, judges=judges, learn_s=learn_s, places=places)
    decision = decide(load, limits, Past())
    for name, now in (("rollout", size), ("judge", judges)):
        bounds, after = limits.pools[name], decision.sizes[name]
        assert now - 1 <= after.size <= now + step
        assert after.size >= min(now, bounds.least)
        assert after.size <= max(now, bounds.most)
        assert after.reason


@given(services, services, learning, places, st.integers(1, MOST), st.integers(1, MOST))
@settings(deadline=None)
def test_under_a_constant_load_every_pool_settles_on_a_size_that_suffices_and_never_turns_back(
    rollout, judge, learn_s, places, size, judges
):
    limits = limits_of()
    # Each change takes a cooldown, four decisions of 15 s, and there are at most 5 to make.
    trail = decided(
        constant(rollout, judge, learn_s, places), {"rollout": size, "judge": judges}, rounds=40, limits=limits
    )
    for name, began in (("rollout", size), ("judge", judges)):
        sizes = [began, *(at[name] for at in trail)]
        assert sizes in (sorted(sizes), sorted(sizes, reverse=True)), "it turned back"
        assert len(set(sizes[-10:])) == 1, "it has not settled"
        load = constant(rollout, judge, learn_s, places)(0, trail[-1])
        pool, last = load.pools[name], sizes[-1]
        other = "judge" if name == "rollout" else "rollout"
        need = min(1 / learn_s, load.pools[other].rate(MOST, load.in_flight))
        best = pool.rate(MOST, load.in_flight)
        assert pool.rate(last, load.in_flight) >= min(1.1 * need, 0.95 * best) - 1e-9
        if last > 1 and last < began:  # it came from above: the next one down would be too few
            assert pool.rate(last - 1, load.in_flight) < min(1.4 * need, 0.98 * best) + 1e-9
        if last > began:  # from below: one fewer was too few
            assert pool.rate(last - 1, load.in_flight) < min(1.1 * need, 0.95 * best) + 1e-9


@given(services, services, learning, places, st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_noise_of_a_twentieth_makes_no_pool_turn_back(rollout, judge, learn_s, places, seed):
    trail = decided(
        constant(rollout, judge, learn_s, places, noise=0.05, seed=seed),
        {"rollout": 1, "judge": 1}, rounds=200, limits=limits_of(),
    )  # fmt: skip
    for name in ("rollout", "judge"):
        sizes = [at[name] for at in trail]
        assert sizes in (sorted(sizes), sorted(sizes, reverse=True)), "it turned back"


@pytest.mark.parametrize("seed", range(20))
def test_a_pool_that_cannot_reach_the_need_does_not_change_back_and_forth_with_noise(seed: int):
    draw, most = random.Random(seed), 8
    limits = Limits(pools={"rollout": Bounds(least=1, most=most), "judge": Bounds(least=1, most=1)}, cooldown_s=0)

    def load_at(number: int, sizes: dict[str, int]) -> Load:
        service = Service(10.0, 0.70 * draw.uniform(0.93, 1.07))  # the last lane adds 3 %, about what noise does
        return load_of(service, size=sizes["rollout"], learn_s=0.01, places=16.0, in_flight=32.0)

    trail = [at["rollout"] for at in decided(load_at, {"rollout": 1, "judge": 1}, rounds=100, limits=limits)]
    assert trail == sorted(trail)


@given(services, learning, learning, places)
def test_a_faster_learner_never_asks_for_fewer_engines(rollout, one, other, places):
    limits = limits_of(cooldown_s=0, agreeing=1, max_step=MOST)
    slow, fast = max(one, other), min(one, other)
    quick = Service(1e-6, 0.0)
    sizes = [
        decide(load_of(rollout, quick, learn_s=learn_s, places=places), limits, Past()).sizes["rollout"].size
        for learn_s in (slow, fast)
    ]
    assert sizes[0] <= sizes[1]


@given(services, st.floats(1.0, 20.0), learning)
def test_slower_engines_never_ask_for_fewer_of_them_where_credits_do_not_bind(rollout, factor, learn_s):
    limits = limits_of(cooldown_s=0, agreeing=1, max_step=MOST)
    sizes = [
        decide(load_of(service, Service(1e-6, 0.0), learn_s=learn_s, in_flight=10**6), limits, Past())
        .sizes["rollout"].size
        for service in (rollout, Service(rollout.base_s * factor, rollout.each_s * factor))
    ]  # fmt: skip
    assert sizes[0] <= sizes[1]


def test_the_reason_names_the_rates_and_who_limits_them():
    limits = limits_of(cooldown_s=0, agreeing=1)
    decision = decide(load_of(Service(0.0, 1.0)), limits, Past())
    assert decision.sizes["rollout"].size == 3
    assert decision.sizes["rollout"].reason == "1 of rollout can make 1 groups/s, learn takes 2: 3 are needed"
    decision = decide(load_of(Service(0.0, 1.0), Service(0.0, 12.0)), limits, Past())
    assert decision.sizes["rollout"].reason == (
        "1 of rollout can make 1 groups/s, judge at its most passes on 0.5: balanced"
    )


def test_engines_are_not_added_when_the_credits_and_not_the_engines_limit_the_rate():
    slow = Service(40.0, 0.0)
    decision = decide(load_of(slow, places=16, in_flight=16), limits_of(cooldown_s=0, agreeing=1), Past())
    assert decision.sizes["rollout"].size == 1


def test_a_change_needs_agreeing_decisions_and_rests_afterwards():
    trail = decided(
        constant(Service(0.0, 1.0), Service(0.01, 0.0), 0.1, 4.0), {"rollout": 1, "judge": 1}, rounds=9,
        limits=limits_of(),
    )  # fmt: skip
    assert [at["rollout"] for at in trail] == [1, 3, 3, 3, 3, 5, 5, 5, 5]


def test_a_pool_whose_lane_could_not_be_added_does_not_grow_until_the_time_is_over():
    limits, load = limits_of(cooldown_s=0, agreeing=1), load_of(Service(0.0, 1.0))
    past = Past().blocked("rollout", 100.0)
    refused = decide(replace(load, now_s=99.0), limits, past)
    assert refused.sizes["rollout"].size == 1
    assert refused.sizes["rollout"].reason.endswith("a lane could not be added lately")
    assert decide(replace(load, now_s=101.0), limits, past).sizes["rollout"].size == 3


def test_a_pool_below_its_least_size_grows_at_once_also_unmeasured_and_just_after_a_change():
    past = Past().with_pool("rollout", PoolPast(changed_s=0.0))
    decision = decide(load_of(None, size=1, now_s=1.0, learn_s=None), limits_of(2, 2), past)
    assert decision.sizes["rollout"].size == 2
    assert "at least 2 are set" in decision.sizes["rollout"].reason


def test_nothing_changes_before_anything_is_measured():
    decision = decide(load_of(None, learn_s=None, size=3), limits_of(cooldown_s=0, agreeing=1), Past())
    assert decision.sizes["rollout"].size == 3
    assert decision.sizes["rollout"].reason == "rollout is not measured yet"


def test_bounds_that_leave_no_lane_are_refused():
    with pytest.raises(ValueError, match=r"expected 1 <= least <= most"):
        Bounds(least=2, most=1)


# -- measurements ----------------------------------------------------------------------------------------------------


def window(service: Service, occupancy: float, *, busy_s: float = 60.0) -> Usage:
    seconds = service.base_s + service.each_s * occupancy
    return Usage(held_s=occupancy * busy_s, busy_s=busy_s, finished=occupancy * busy_s / seconds)


@given(services, st.lists(st.floats(1.0, 16.0), min_size=2, max_size=20))
def test_the_fit_finds_the_rate_at_full_places_from_any_two_different_occupancies(service, occupancies):
    if max(occupancies) / min(occupancies) < 2:
        occupancies = [1.0, *occupancies, 16.0]
    fit = ServiceFit(places=16.0)
    for occupancy in occupancies:
        fit.add(window(service, occupancy, busy_s=1000.0))
    found = fit.service
    assert found is not None
    # The first measurement at an occupancy fixes it, those within BIN of it are mixed into it.
    assert found.rate(1, places=16.0) == pytest.approx(service.rate(1, places=16.0), rel=0.5)


def test_waiting_inside_a_lane_is_not_taken_for_work():
    fit = ServiceFit(places=4.0)
    fit.add(Usage(held_s=8 * 60.0, busy_s=60.0, finished=24.0))  # decodes 4 together for 10 s each, and queues 4
    assert fit.service == Service(10.0, 0.0)


def test_longer_answers_change_the_time_at_every_occupancy():
    fit = ServiceFit(places=16.0)
    for occupancy in (2.0, 8.0):
        fit.add(window(Service(10.0, 1.0), occupancy))
    for _ in range(30):
        fit.add(window(Service(20.0, 2.0), 8.0))
    assert fit.service is not None
    assert fit.service.rate(1, places=16) == pytest.approx(Service(20.0, 2.0).rate(1, places=16), rel=0.02)


def test_windows_with_few_groups_are_put_together():
    fit = ServiceFit(places=4.0)
    fit.add(Usage(held_s=10.0, busy_s=10.0, finished=1.0))
    assert fit.service is None
    fit.add(Usage(held_s=10.0, busy_s=10.0, finished=1.0))
    assert fit.service == Service(10.0, 0.0)


def test_no_line_falls_below_zero():
    assert fitted([(1.0, 5.0), (4.0, 2.0)]) == Service(3.5, 0.0)
    assert fitted([(1.0, 1.0), (4.0, 10.0)]) == Service(0.0, 41 / 17)
    assert fitted([]) is None


def test_a_load_that_became_light_at_another_occupancy_is_believed():
    fit = ServiceFit(places=4.0)
    for occupancy in (4.0, 2.7, 4.0):
        fit.add(window(Service(1.0, 0.0), occupancy))
    fit.add(window(Service(0.1, 0.0), 1.0))
    assert fit.service is not None
    assert fit.service.rate(2, places=4.0, in_flight=8.0) == pytest.approx(80.0)
