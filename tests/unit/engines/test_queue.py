"""The queue in front of an engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solon.engines.queue import Queue


def filled(places: int, count: int) -> Queue:
    queue = Queue(places)
    for number in range(count):
        queue.add(f"r{number}")
    return queue


def test_requests_are_admitted_in_order_and_never_beyond_the_places():
    queue = filled(2, 5)
    assert queue.let_in() == ["r0", "r1"]
    assert queue.let_in() == []
    assert queue.remove(["r0"]) == ["r0"]
    assert queue.let_in() == ["r2"]


def test_preempted_requests_are_admitted_again_first_in_their_old_order():
    queue = filled(3, 5)
    assert queue.let_in() == ["r0", "r1", "r2"]
    assert queue.take_back(lambda request_id: request_id != "r1") == ["r0", "r2"]
    assert queue.let_in() == ["r0", "r2"]
    queue.remove(["r1", "r0", "r2"])
    assert queue.let_in() == ["r3", "r4"]


def test_a_request_is_removed_in_any_state_and_the_engine_aborts_only_admitted_ones():
    queue = filled(1, 3)
    queue.let_in()
    assert queue.remove(["r1", "unknown"]) == []
    assert queue.remove(["r0"]) == ["r0"]
    assert queue.let_in() == ["r2"]


@given(places=st.integers(1, 4), actions=st.lists(st.sampled_from("aaalllrb"), max_size=60), choose=st.randoms())
def test_every_request_is_admitted_once_more_than_it_is_preempted_and_the_places_are_never_exceeded(
    places, actions, choose
):
    queue, added, inside, removed = Queue(places), 0, [], set()
    for action in actions:
        if action == "a":
            queue.add(f"r{added}")
            added += 1
        elif action == "l":
            inside += queue.let_in()
        elif action == "r" and added:
            gone = f"r{choose.randrange(added)}"
            assert queue.remove([gone]) == ([gone] if gone in inside else [])
            inside = [request_id for request_id in inside if request_id != gone]
            removed.add(gone)
        elif action == "b":
            assert queue.take_back(lambda request_id: True) == inside
            inside = []
        assert len(inside) == len(set(inside)) <= places
        assert not removed & set(inside)
    removed |= set(queue.remove(inside))
    while new := queue.let_in():
        removed |= set(queue.remove(new))
    assert removed == {f"r{number}" for number in range(added)}
