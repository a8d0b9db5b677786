"""A step that moves nothing has a cause and a remedy; a run of such steps has trained nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from solon.doctor.goal import end_failure, end_warnings
from solon.ledger.ledger import Lease
from solon.records import StepReport
from solon.telemetry.movement import Movement
from solon.telemetry.totals import RunTotals
from tests.unit.telemetry.test_recorder import lines, make_lease, make_recorder

CUT = {"learn/truncated/share": 1.0, "learn/masked/share": 1.0, "learn/rollouts/sum": 16.0}
SAME = {"learn/truncated/share": 0.0, "learn/masked/share": 0.0, "learn/reward_in_group/std": 0.0}


def still(step: int = 0, metrics: dict[str, float] | None = None, *, moved: bool = False) -> StepReport:
    return StepReport(step=step, metrics=CUT if metrics is None else metrics, moved=moved)


@pytest.mark.parametrize(
    ("truncated", "metrics", "cause"),
    [
        (
            "mask",
            CUT,
            "all 16 answers were cut at rollout.max_tokens = 8 and learn.truncated = 'mask'.*; raise rollout",
        ),
        (
            "mask",
            CUT | {"learn/truncated/share": 0.75, "learn/masked/share": 0.8},
            "12 of 16 answers were cut .* the rest",
        ),
        ("keep", SAME, "the answers to one prompt all have the same reward; .* rollout.temperature"),
        ("keep", CUT | {"learn/too_old/share": 1.0}, "every token is masked, 100% .* learn.max_token_staleness"),
        ("keep", {}, "every gradient was exactly 0"),
    ],
)
def test_a_step_that_moved_nothing_has_a_cause(truncated: str, metrics: dict[str, float], cause: str):
    movement = Movement(max_tokens=8, truncated=truncated)
    movement.add(still(metrics=metrics))
    assert re.match(cause, movement.cause), movement.cause
    assert movement.cut == ""
    assert movement.trained_nothing


@pytest.mark.parametrize("truncated", ["keep", "mask", "penalise", "bootstrap"])
def test_nearly_all_answers_cut_is_reported_although_the_step_moved(truncated: str):
    movement = Movement(max_tokens=16, truncated=truncated)
    for share, said in ((0.875, ""), (15 / 16, "15 of 16 answers were cut at rollout.max_tokens = 16")):
        movement.add(still(metrics={**CUT, "learn/truncated/share": share, "learn/masked/share": 0.0}, moved=True))
        assert movement.cut.startswith(said)
        assert bool(movement.cut) == bool(said)
        assert movement.cause == ""
    assert movement.verdict() == [f"in 1 of 2 steps nearly all answers were cut; last: {movement.cut}"]


def test_a_run_of_steps_that_moved_nothing_has_failed_and_one_step_that_did_makes_it_a_warning():
    movement = Movement(max_tokens=16, truncated="mask")
    assert end_failure(movement, {}, 0, allowed=0.05) is None  # no step yet
    for step in range(2):
        movement.add(still(step))
    failure = end_failure(movement, {}, 4, allowed=0.05)
    assert failure is not None
    assert failure.startswith("the run trained nothing: none of 2 steps moved the policy: all 16 answers were cut")
    assert end_warnings(movement, {}, 4, allowed=0.05, failure=failure) == []
    movement.add(still(2, {}, moved=True))
    assert end_failure(movement, {}, 6, allowed=0.05) is None
    (warning,) = end_warnings(movement, {}, 6, allowed=0.05)
    assert warning.startswith("1 of 3 steps moved the policy, the others did not: all 16 answers were cut")


def test_the_count_continues_after_a_resume_and_an_old_checkpoint_causes_no_warning():
    totals = RunTotals(staleness_bound=4, total_steps=3)
    for step in range(2):
        totals.stepped(Lease(step=step, token=1, ordinals=(step,), staleness=(0,), payloads=()), still(step))
    state = json.loads(json.dumps(totals.state()))
    again = RunTotals(staleness_bound=4, total_steps=3)
    again.restore(state)
    assert again.movement.verdict() == totals.movement.verdict() != []
    assert again.movement.trained_nothing
    old = RunTotals(staleness_bound=4, total_steps=3)
    old.restore({key: value for key, value in state.items() if key != "movement"})
    assert (old.movement.verdict(), old.movement.steps, old.movement.moved) == ([], 2, 2)


def test_events_and_summary_say_which_steps_moved_nothing(tmp_path: Path):
    recorder, path = make_recorder(tmp_path)
    recorder.totals.movement = Movement(max_tokens=16, truncated="mask")
    recorder.stepped(make_lease(0), still(0))
    recorder.stepped(make_lease(1), still(1, moved=True))
    recorder.stepped(make_lease(2), still(2, {}, moved=True))
    recorder.close()
    events = [(line["event"], line["step"]) for line in lines(path / "events.jsonl")]
    assert events == [("nothing_moved", 0), ("answers_cut", 1)]
    assert lines(path / "events.jsonl")[0]["cause"].startswith("all 16 answers were cut at rollout.max_tokens = 16")
    counts = {"admitted": 6, "committed": 6, "dropped": 0, "held": 0}
    summary = recorder.totals.summary(status="completed", counts=counts, attested=3)
    assert (summary["steps"], summary["steps_moved"]) == (3, 2)
