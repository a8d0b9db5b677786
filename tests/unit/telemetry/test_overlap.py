from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.records import Span
from solon.telemetry.overlap import LANES, Busy, measure


def span(lane: Any, start_s: float, end_s: float, worker: str = "") -> Span:
    return Span(lane=lane, worker=worker or f"{lane}-0", name="work", start_s=start_s, end_s=end_s)


def test_shares_efficiency_and_the_binding_stage_match_hand_computed_values():
    spans = [span("generate", 0, 8), span("label", 2, 5), span("learn", 4, 10), span("publish", 0, 10)]
    overlap = measure(spans, start_s=0, end_s=10)
    assert overlap.busy == pytest.approx({"generate": 0.8, "label": 0.3, "learn": 0.6})
    assert overlap.efficiency == pytest.approx(0.8)
    assert overlap.binding_stage == "generate"
    assert overlap.speedup_bound == pytest.approx(1.7 / 0.8)


def test_several_workers_of_a_lane_count_as_their_mean():
    spans = [span("generate", 0, 10, "a"), span("generate", 0, 5, "b")]
    assert measure(spans, start_s=0, end_s=10).busy["generate"] == pytest.approx(0.75)


def test_without_work_no_lane_binds():
    overlap = measure([], start_s=0, end_s=1)
    assert (overlap.efficiency, overlap.binding_stage, overlap.speedup_bound) == (0.0, "none", 1.0)
    assert set(overlap.busy) == set(LANES)


@pytest.mark.parametrize(("start_s", "end_s"), [(5, 5), (6, 5)])
def test_a_window_of_no_length_is_no_division_by_zero(start_s: float, end_s: float):
    overlap = measure([span("learn", 0, 10)], start_s=start_s, end_s=end_s)
    assert 0 <= overlap.efficiency <= 1


def test_a_span_that_ends_before_it_starts_counts_nothing():
    busy = Busy()
    busy.add(span("learn", 5, 4))
    busy.add(span("learn", 6, 7))
    assert busy.overlap(wall_s=10).busy["learn"] == pytest.approx(0.1)


GRID = st.tuples(st.sampled_from(LANES), st.integers(0, 1), st.integers(-3, 12), st.integers(0, 6))


@settings(max_examples=40, deadline=None)
@given(st.lists(GRID, max_size=12))
def test_overlapping_spans_count_once(found: list[tuple[str, int, int, int]]):
    spans = [span(lane, start, start + length, f"{lane}-{w}") for lane, w, start, length in found]
    overlap = measure(spans, start_s=0, end_s=10)
    for lane in LANES:
        workers = {
            s.worker: {t for other in spans if other.worker == s.worker for t in range(10) if covers(other, t)}
            for s in spans
            if s.lane == lane and s.end_s > 0 and s.start_s < 10
        }
        shares = [len(ticks) / 10 for ticks in workers.values()]
        assert overlap.busy[lane] == pytest.approx(sum(shares) / len(shares) if shares else 0.0)
    assert overlap.efficiency == max(overlap.busy.values())
    assert overlap.speedup_bound <= len(LANES) + 1e-9


def covers(one: Span, tick: int) -> bool:
    return one.start_s <= tick and tick + 1 <= one.end_s


def test_a_worker_that_joined_or_left_counts_for_the_time_that_it_was_there():
    busy = Busy()
    for worker, start, end in (("one", 0, 80), ("two", 60, 76)):
        busy.add(Span(lane="generate", worker=worker, name="decode", start_s=start, end_s=end))
    busy.joined("two", 60)
    busy.left("two", 80)
    again = Busy()
    again.add_totals(busy.totals())
    again.add_presence(busy.presence())
    for one in (busy, again):
        assert one.overlap(wall_s=100).busy["generate"] == pytest.approx((80 + 16) / (100 + 20))
