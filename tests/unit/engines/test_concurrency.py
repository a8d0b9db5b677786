"""Requests decoded together: bounds, cuts, growth, and a cache in which it finds the number that fits."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from solon.engines.concurrency import FULL, REST, ROOMY, Concurrency
from solon.engines.queue import Queue

looks = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.integers(0, 64), st.integers(0, 100)), max_size=300)


@given(st.integers(1, 64), looks)
def test_the_number_stays_between_one_and_its_bound(most, steps):
    concurrency = Concurrency(most)
    for usage, preempted, running, waiting in steps:
        places = concurrency.after_step(
            usage=usage, preempted=preempted, running=min(running, concurrency.places), waiting=waiting
        )
        assert 1 <= places <= most


@given(st.integers(1, 64), st.lists(st.floats(0, FULL, exclude_max=True), max_size=200))
def test_an_engine_with_room_in_its_cache_is_never_limited(most, usages):
    concurrency = Concurrency(most)
    for usage in usages:
        assert concurrency.after_step(usage=usage, preempted=0, running=most, waiting=9) == most


@given(st.integers(2, 64), st.integers(1, 5))
def test_a_preemption_cuts_by_a_share_and_growth_adds_a_little_at_a_time(most, preempted):
    concurrency = Concurrency(most)
    cut = concurrency.after_step(usage=1.0, preempted=preempted, running=most, waiting=9)
    assert cut == max(1, int(most * 0.8))
    seen = [cut]
    for _ in range(REST * 70):
        seen.append(concurrency.after_step(usage=ROOMY - 0.1, preempted=0, running=seen[-1], waiting=9))
    grown = [later - now for now, later in itertools.pairwise(seen)]
    assert max(grown) <= max(1, round(most / 32))
    assert seen[-1] == most


@given(st.integers(16, 64), st.floats(0.25, 0.9))
def test_with_a_cache_for_fewer_requests_it_settles_near_that_number(most, share):
    fits = most * share
    concurrency, sizes = Concurrency(most), []
    for _ in range(REST * 100):
        running = min(concurrency.places, int(fits))
        over = concurrency.places > fits
        concurrency.after_step(usage=min(1.0, running / fits), preempted=int(over), running=running, waiting=50)
        sizes.append(concurrency.places)
    late = sizes[len(sizes) // 2 :]
    assert max(late) <= fits + max(1, most / 32)
    assert min(late) >= min(0.6 * fits, fits - 2) - 1
    changes = [later - now for now, later in itertools.pairwise(late) if later != now]
    assert sum(change < 0 for change in changes) <= len(changes) / 2 + 1, "more cuts than growths"


def test_nothing_grows_while_nothing_waits():
    concurrency = Concurrency(16)
    concurrency.after_step(usage=1.0, preempted=1, running=16, waiting=0)
    for _ in range(100):
        assert concurrency.after_step(usage=0.1, preempted=0, running=12, waiting=0) == 12


def test_a_queue_with_fewer_places_admits_fewer_and_ends_none():
    queue = Queue(4)
    for name in "abcdefgh":
        queue.add(name)
    assert queue.let_in() == list("abcd")
    queue.places = 2
    assert queue.let_in() == []
    queue.remove("ab")
    assert queue.let_in() == []
    queue.remove("c")
    assert queue.let_in() == ["e"]
    assert (queue.num_inside, queue.num_waiting) == (2, 3)
