"""The conservation law of a run from its files: which groups count as trained, dropped, held, lost and doubled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.ledger.conservation import account

Line = dict[str, Any]


def commit(time: float, step: int, *ordinals: int) -> Line:
    return {"time": time, "step": step, "batch/ordinals": list(ordinals)}


def drop(time: float, ordinal: int, reason: str = "no label") -> Line:
    return {"time": time, "event": "group_dropped", "ordinal": ordinal, "reason": reason}


def resumed(time: float, step: int, admitted: int, *held: int) -> Line:
    return {"time": time, "event": "resumed", "step": step, "admitted": admitted, "held": list(held)}


def test_a_completed_run_has_trained_or_dropped_every_group_once():
    found = account([drop(1, 2, "judge died")], [commit(2, 0, 0, 1), commit(3, 1, 3, 4)], admitted=5, held=())
    assert found.is_balanced
    assert found.committed == {0: 0, 1: 0, 3: 1, 4: 1}
    assert (found.dropped, found.reasons) == ({2: "judge died"}, {"judge died": 1})
    assert (found.held, found.lost, found.doubled) == (frozenset(), frozenset(), frozenset())


def test_a_group_held_by_no_one_is_lost_and_one_that_counts_twice_is_doubled():
    found = account([drop(1, 1)], [commit(2, 0, 0, 1), commit(3, 1, 3, 0)], admitted=5, held=())
    assert found.lost == {2, 4}
    assert found.doubled == {0, 1}
    assert not found.is_balanced


def test_held_groups_are_not_lost_and_without_an_end_none_is():
    metrics = [commit(2, 0, 0, 3)]
    assert account([], metrics, admitted=6, held=[1, 2, 5]).lost == {4}
    assert account([], metrics).held == {1, 2}
    assert account([], metrics).is_balanced


def test_a_group_that_is_trained_and_still_held_would_count_again():
    assert account([], [commit(1, 0, 0, 1)], admitted=2, held=[1]).doubled == {1}


def test_a_resumed_run_revokes_the_steps_after_its_checkpoint_and_the_drops_of_held_groups():
    events = [drop(1.5, 2), drop(2.5, 5, "late"), drop(2.6, 9, "late"), resumed(4, 1, 8, 4, 5, 6, 7)]
    metrics = [commit(1, 0, 0, 1), commit(2, 1, 4, 3), commit(3, 2, 6, 8)]
    found = account(events, metrics)
    assert found.admitted == 8
    assert found.committed == {0: 0, 1: 0}
    assert found.dropped == {2: "no label"}
    assert found.held == {3, 4, 5, 6, 7}


def test_steps_repeated_after_a_resume_count_once():
    events = [resumed(4, 1, 5, 2, 3, 4), drop(5.5, 3)]
    metrics = [commit(1, 0, 0, 1), commit(2, 1, 2, 3), commit(5, 1, 2, 4)]
    found = account(events, metrics, admitted=5, held=())
    assert found.is_balanced
    assert found.committed == {0: 0, 1: 0, 2: 1, 4: 1}


def test_resuming_twice_from_one_checkpoint_revokes_the_steps_in_between():
    events = [resumed(3, 1, 4, 2, 3), resumed(5, 1, 4, 2, 3)]
    metrics = [commit(1, 0, 0, 1), commit(2, 1, 2, 3), commit(4, 1, 3, 2)]
    assert account(events, metrics).committed == {0: 0, 1: 0}


def test_a_resume_without_a_checkpoint_begins_with_nothing():
    found = account([drop(1, 0), resumed(3, 0, 0)], [commit(2, 0, 1, 2)])
    assert (found.admitted, found.committed, found.dropped) == (0, {}, {})


def test_the_order_of_lines_in_a_file_outweighs_a_clock_that_went_back():
    metrics = [commit(100, 0, 0, 1), commit(101, 1, 2, 3), commit(51, 1, 2, 3)]
    found = account([resumed(50, 1, 4, 2, 3)], metrics, admitted=4, held=())
    assert found.is_balanced


def test_an_empty_run_is_balanced():
    assert account([], [], held=()).is_balanced


def test_a_line_that_no_run_writes_is_refused():
    with pytest.raises(KeyError):
        account([], [{"time": 1, "step": 0}])


@given(st.data())
def test_any_history_of_steps_drops_crashes_and_resumes_is_balanced_and_no_group_can_go_missing_unseen(data):
    """A little run: numbers go up, batches take held groups, checkpoints cut, crashes go back to the last cut."""
    events: list[Line] = []
    metrics: list[Line] = []
    clock, step, admitted = 0.0, 0, 0
    held: set[int] = set()
    trained: set[int] = set()
    given_up: set[int] = set()
    cut = (0, 0, frozenset(held), frozenset(trained), frozenset(given_up))
    for move in data.draw(st.lists(st.sampled_from(["admit", "train", "drop", "checkpoint", "crash"]), max_size=60)):
        clock += 1
        if move == "admit":
            new = range(admitted, admitted + data.draw(st.integers(1, 4)))
            held, admitted = held | set(new), new.stop
        elif move == "train" and len(held) >= 2:
            batch = data.draw(st.permutations(sorted(held)))[:2]
            metrics.append(commit(clock, step, *batch))
            step, held, trained = step + 1, held - set(batch), trained | set(batch)
        elif move == "drop" and held:
            ordinal = data.draw(st.sampled_from(sorted(held)))
            events.append(drop(clock, ordinal))
            held, given_up = held - {ordinal}, given_up | {ordinal}
        elif move == "checkpoint":
            cut = (step, admitted, frozenset(held), frozenset(trained), frozenset(given_up))
        elif move == "crash":
            step, admitted = cut[:2]
            held, trained, given_up = map(set, cut[2:])
            events.append(resumed(clock, step, admitted, *sorted(held)))
    found = account(events, metrics, admitted=admitted, held=held)
    assert found.is_balanced
    assert (found.committed.keys(), found.dropped.keys(), found.held) == (trained, given_up, held)
    if held:
        gone = data.draw(st.sampled_from(sorted(held)))
        assert account(events, metrics, admitted=admitted, held=held - {gone}).lost == {gone}
    if trained:
        twice = data.draw(st.sampled_from(sorted(trained)))
        assert twice in account([*events, drop(clock + 1, twice)], metrics, admitted=admitted, held=held).doubled
